"""The states of a site as nodes of a graph: (features, samples), whichever axis of the tensor holds the features.

A feature axis may itself hold positions, as behind a Flatten: channels x pixels in PyTorch's order, pixels x channels
in TensorFlow's. Positions in front of the features (`outer`) and behind them (`inner`) count as samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.records import Plan, Site

if TYPE_CHECKING:
    import onnx


def state_nodes(site: Site, name: str, tensor: str) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes that give the states of a site in float32.

    Args:
        site: where.
        name: of the result, and of what leads to it.
        tensor: the tensor to read, that of the site unless the graph calls it otherwise.

    Returns:
        The nodes and the constants that they need.
    """
    from onnx import TensorProto, helper

    constants = {f"{name}.target": np.array([site.features, -1])}
    front = [site.axis, *(i for i in range(site.rank) if i != site.axis)]
    nodes = [helper.make_node("Transpose", [tensor], [f"{name}.front"], perm=front)]
    flat = f"{name}.front"
    if site.outer > 1:
        constants[f"{name}.apart"] = np.array([site.outer, site.features, -1])
        nodes.append(helper.make_node("Reshape", [flat, f"{name}.apart"], [f"{name}.parts"]))
        nodes.append(helper.make_node("Transpose", [f"{name}.parts"], [f"{name}.turned"], perm=[1, 0, 2]))
        flat = f"{name}.turned"
    nodes.append(helper.make_node("Reshape", [flat, f"{name}.target"], [f"{name}.flat"]))
    nodes.append(helper.make_node("Cast", [f"{name}.flat"], [name], to=TensorProto.FLOAT))
    return nodes, {key: array.astype(np.int64) for key, array in constants.items()}


def kept_features(site: Site, plan: Plan | None) -> np.ndarray:
    """The features of a site that a plan keeps: (features,) bool, features as in the original."""
    positions = plan.activations.get(site.tensor, {}).get(site.axis) if plan else None
    if positions is None:
        return np.ones(site.features, bool)
    features = (np.array(positions) // site.inner) % site.features
    return np.isin(np.arange(site.features), features)


def by_feature(positions: np.ndarray, site: Site) -> np.ndarray:
    """Values for the positions of an axis, arranged by feature.

    Args:
        positions: (size of the axis, ...).
        site: says how features lie on the axis.

    Returns:
        (features, positions of each feature, ...).
    """
    rest = positions.shape[1:]
    apart = positions.reshape(site.outer, -1, site.inner, *rest)
    return np.swapaxes(apart, 0, 1).reshape(apart.shape[1], site.outer * site.inner, *rest)

"""Positions that the attention mask hides have no part in scores and refit."""

from __future__ import annotations

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import DataError
from onnxprune.grouping import find_units
from onnxprune.moments import calibrate
from onnxprune.runtime import Session
from test_recovery_padding import MASKED, SHOWN, TOKENS, encoder, padded

EACH = 1, 1, 1


@pytest.mark.parametrize("stride", [1, 3])
def test_moments_are_of_shown_positions_and_extremes_of_all(stride: int) -> None:
    units = find_units(encoder(0), MASKED)
    (group,) = (group for group in units.groups.values() if group.size == 16)
    (site,) = {states.site for states in group.post}
    assert site.repeats == EACH
    whole = Session(units.graph.message(outputs=[site.tensor]), device="cpu").run(MASKED, [site.tensor])[0]
    shown, whole = whole[SHOWN][::stride].astype(float), whole.reshape(-1, whole.shape[-1])[::stride]
    batches = [({name: array[i : i + 6] for name, array in MASKED.items()}, 6) for i in range(0, 24, 6)]
    moments = calibrate(units.graph, [site], batches if stride == 1 else [(MASKED, 24)], stride=stride)
    assert moments.count[site.key] == len(shown)
    np.testing.assert_allclose(moments.total[site.key], shown.sum(0), rtol=1e-5)
    np.testing.assert_allclose(moments.second[site.key], shown.T @ shown, rtol=1e-5)
    np.testing.assert_array_equal(moments.low[site.key], whole.min(0))
    np.testing.assert_array_equal(moments.high[site.key], whole.max(0))


def test_the_batch_size_makes_no_difference() -> None:
    """Not even to a sample of nothing but padding, alone in its batch."""
    found = [
        onnxprune.score(encoder(0), MASKED, feeding=onnxprune.Feeding(batch=size)).moments.second for size in (1, 24)
    ]
    for key, second in found[0].items():
        np.testing.assert_allclose(second, found[1][key], rtol=1e-5, atol=1e-3)


def test_synthetic_inputs_hide_nothing_and_data_may_not_hide_everything() -> None:
    assert min(onnxprune.score(encoder(0)).moments.count.values()) > 0
    with pytest.raises(DataError, match="attention_mask is 0 everywhere, so that no token counts; give 1 for each"):
        onnxprune.score(encoder(0), MASKED | {"attention_mask": np.zeros_like(TOKENS)})


REPEATS = {
    "bert": {EACH, (1, -1, 1), None},
    "deberta": {EACH, (1, -1, 1), None},
    "gpt2": {EACH, (1, -1, 1)},
    "llama": {EACH, (1, -1, 1)},
}
"""Heads lie between samples and tokens, or all on one axis; states that are pooled, or of positions, hold no tokens."""


@pytest.mark.parametrize("name", REPEATS)
def test_what_is_hidden_changes_nothing(name: str) -> None:
    graph, *sets = padded(name)
    groups = find_units(graph).groups.values()
    assert {states.site.repeats for group in groups for states in group.post} == REPEATS[name]
    budget, method = onnxprune.Budget("units", 0.5), onnxprune.Method(rounds=2, refit=True, latency=False)
    found = [onnxprune.prune(graph, budget, data, method=method) for data in sets]
    assert found[0].plan.initializers == found[1].plan.initializers
    for key, scores in found[0].scores.by_group.items():
        np.testing.assert_allclose(scores, found[1].scores.by_group[key], rtol=1e-4)
    for key, array in found[0].graph.constants.items():
        np.testing.assert_allclose(array, found[1].graph.constants[key], atol=1e-4)


def test_the_same_texts_differ_where_nothing_is_hidden() -> None:
    """Otherwise the test above would prove nothing."""
    graph, data, other = padded("bert")
    whole = {"attention_mask": np.ones_like(data["attention_mask"])}
    found = [onnxprune.score(graph, chosen | whole).scores.by_group for chosen in (data, other)]
    assert any(not np.allclose(scores, found[1][key], rtol=1e-2) for key, scores in found[0].items())

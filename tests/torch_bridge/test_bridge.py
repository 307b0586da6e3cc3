"""The bridge as a whole: there and back, other types and devices, and what it knows."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from builders import Net
from onnxprune.graph import load
from onnxprune.rules import supported_operators
from onnxprune.runtime import Session
from onnxprune.torch_bridge import inputs_of, to_onnx, to_torch, untouched_parameters
from onnxprune.torch_bridge.arrays import array_of
from onnxprune.torch_bridge.base import find_operator, operator, registered
from onnxprune.torch_bridge.parity import check, difference
from torch_bridge.parity import X, assert_parity, covered, network, perturb, run, weight

FAMILIES = (
    *(
        "attention",
        "creation",
        "elementwise",
        "indexing",
        "interpolation",
        "layout",
        "linear",
        "normalize",
        "pool",
        "quantize",
        "recurrent",
        "reduce",
        "regions",
        "spectra",
    ),
)


def test_there_and_back() -> None:
    graph, feeds = network()
    module = assert_parity(graph, feeds)
    perturb(module)
    trained = to_onnx(module, graph, feeds)
    (expected,) = Session(trained.message(), device="cpu").run(feeds)
    assert difference(run(module, graph, feeds), expected) < 1e-5
    before = Session(graph.message(), device="cpu").run(feeds)[0]
    assert difference(before, expected) > 1e-3
    assert [n.SerializeToString() for n in trained.proto().graph.node] == [
        n.SerializeToString() for n in graph.proto().graph.node
    ]
    assert {x.name: (x.data_type, list(x.dims)) for x in trained.proto().graph.initializer} == {
        x.name: (x.data_type, list(x.dims)) for x in graph.proto().graph.initializer
    }


def test_nothing_trained_nothing_changed() -> None:
    graph, _ = network()
    back = to_onnx(to_torch(graph), graph)
    assert back.proto().SerializeToString() == graph.proto().SerializeToString()
    assert all(back.constants[name] is graph.constants[name] for name in graph.constants)


def test_only_what_changed_is_written() -> None:
    graph, _ = network()
    module = to_torch(graph)
    with torch.no_grad():
        module.norm.w[2] += 1
    back = to_onnx(module, graph)
    assert {n for n in graph.constants if back.constants[n] is not graph.constants[n]} == {"norm.w"}


def test_another_batch_size() -> None:
    graph, feeds = network()
    module = to_torch(graph, feeds)
    check(module, graph, {"x0": np.concatenate([feeds["x0"]] * 3)})


def test_gradients_reach_every_parameter() -> None:
    graph, feeds = network()
    module = to_torch(graph)
    assert untouched_parameters(module, feeds) == []
    assert all(parameter.grad is None for parameter in module.parameters())
    net = Net()
    x = net.input("batch", 4)
    used, unused = net.dense(x, 4, 3), net.op("ArgMax", net.dense(x, 4, 3), axis=1)
    graph = net.output(used).output(unused, kind=onnx.TensorProto.INT64).graph()
    assert untouched_parameters(to_torch(graph), {"x0": X}) == ["c2", "c3"]
    net = Net()
    graph = net.output(net.op("ArgMax", net.dense(net.input("batch", 4), 4, 3)), kind=onnx.TensorProto.INT64).graph()
    assert untouched_parameters(to_torch(graph), {"x0": X}) == ["c0", "c1"]


def test_the_module_starts_in_evaluation_mode_and_the_check_leaves_the_mode() -> None:
    graph, feeds = network()
    module = to_torch(graph, feeds)
    assert not module.training
    module.train()
    to_onnx(module, graph, feeds)
    assert module.training


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_element_types_are_kept(kind: type) -> None:
    net = Net()
    x = net.input("batch", 4, kind=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    w = net.constant(weight(4, 3).astype(kind), "w")
    graph = net.output(net.op("MatMul", x, w), kind=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))).graph()
    feeds = {"x0": X.astype(kind)}
    module = assert_parity(graph, feeds, tolerance=5e-3 if kind is np.float16 else 1e-9)
    perturb(module)
    assert to_onnx(module, graph, feeds).constants["w"].dtype == kind
    assert to_onnx(module.to(torch.float32), graph).constants["w"].dtype == kind


def test_bfloat16_weights_go_there_and_back() -> None:
    import ml_dtypes

    net = Net()
    values = weight(4, 4).astype(ml_dtypes.bfloat16)
    w = net.op("Cast", net.constant(values, "w"), to=onnx.TensorProto.FLOAT)
    graph = net.output(net.op("MatMul", net.input("batch", 4), w)).graph()
    module = assert_parity(graph, {"x0": X})
    assert module.w.dtype is torch.bfloat16
    assert to_onnx(module, graph).constants["w"] is graph.constants["w"]
    with torch.no_grad():
        module.w.mul_(2)
    np.testing.assert_array_equal(to_onnx(module, graph).constants["w"], values * 2)


def test_bfloat16_results_can_be_compared() -> None:
    np.testing.assert_array_equal(
        array_of(torch.tensor([0.5, 2], dtype=torch.bfloat16)), np.array([0.5, 2], np.float32)
    )


def test_a_copy_of_a_module_is_whole() -> None:
    graph, feeds = network()
    module = to_torch(graph)
    module.dropout = True
    twin = copy.deepcopy(module)
    perturb(twin)
    assert set(twin.state_dict()) == set(module.state_dict())
    assert difference(run(twin, graph, feeds), run(module, graph, feeds)) > 1e-3
    check(twin, to_onnx(twin, graph), feeds)
    twin.load_state_dict(module.state_dict())
    np.testing.assert_array_equal(run(twin, graph, feeds), run(module, graph, feeds))


def test_sizes_stay_on_the_cpu_wherever_the_module_runs() -> None:
    graph, feeds = network()
    net = Net(17)
    x = net.input("batch", 4)
    count = net.op("Cast", net.op("Size", x), to=1)
    width = net.op("Gather", net.op("Shape", x), net.constant(np.array([1])), axis=0)
    ones = net.op("ConstantOfShape", width, value=onnx.numpy_helper.from_array(np.array([1])))
    positions = net.op("Add", net.op("CumSum", ones, net.ints(0)), net.ints(1))
    y = net.op("Add", net.op("Div", x, net.op("Sqrt", count)), net.op("Cast", positions, to=1))
    mixed = net.output(y).graph()
    assert_parity(mixed, {"x0": X})
    for model, batch in ((graph, feeds), (mixed, {"x0": X})):
        module = to_torch(model).to("meta")  # as on a GPU, tensors of two devices cannot meet
        (result,) = module(*inputs_of(model.inputs, batch, "meta"))
        assert result.device.type == "meta"


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_sees_one_graph() -> None:
    graph, feeds = network(13)
    net = Net(17)
    y = net.op("MaxPool", net.conv(net.input("batch", 3, 8, 8), 3, 6, kernel=3), kernel_shape=[2, 2])
    plain = net.output(net.dense(net.op("Flatten", y), 6 * 25, 4)).graph()
    compiled = torch.compile(to_torch(plain), backend="eager", fullgraph=True)
    np.testing.assert_array_equal(run(compiled, plain, feeds), run(to_torch(plain), plain, feeds))
    assert to_onnx(compiled, plain, feeds).sha256 == plain.sha256
    loose = torch.compile(to_torch(graph), backend="eager")
    np.testing.assert_array_equal(run(loose, graph, feeds), run(to_torch(graph), graph, feeds))


def test_dropout_is_off_until_it_is_switched_on() -> None:
    net = Net(13)
    graph = net.output(net.op("Dropout", net.dense(net.input("batch", 4), 4, 50))).graph()
    module = to_torch(graph)
    plain = run(module, graph, {"x0": X})
    module.train()
    np.testing.assert_array_equal(run(module, graph, {"x0": X}), plain)
    module.dropout = True
    dropped = run(module, graph, {"x0": X})
    assert 0.2 < (dropped == 0).mean() < 0.8
    np.testing.assert_allclose(dropped[dropped != 0], 2 * plain[dropped != 0], rtol=1e-6)
    module.eval()
    np.testing.assert_array_equal(run(module, graph, {"x0": X}), plain)


def test_two_forms_for_one_opset_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Relu has two PyTorch forms for opset 1$"):
        operator("Relu")(torch.relu)


def test_the_newest_form_that_is_not_too_new_is_taken() -> None:
    names = {opset: find_operator("", "Softmax", opset).function.__name__ for opset in (1, 12, 13, 25)}
    assert names == {1: "softmax_1", 12: "softmax_1", 13: "softmax", 25: "softmax"}
    assert find_operator("ai.onnx", "Gelu", 20) is find_operator("", "Gelu", 20)
    assert find_operator("com.nobody", "Gelu", 20) is None


UNTRAINED = {
    "integers have no gradient": {
        *("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear"),
        *("QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul"),
        "QLinearSigmoid",
    },
    "each run draws other numbers": {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    },
}
"""Operators that have a rule and no PyTorch form; a model with one is refused by name."""


def test_every_operator_with_a_rule_has_a_torch_form() -> None:
    have = {(domain, op) for domain, op, _ in registered()}
    ruled = {(domain, op) for domain, ops in supported_operators().items() for op in ops}
    assert {op for _, op in ruled - have} == set().union(*UNTRAINED.values())


def test_every_torch_form_has_a_case() -> None:
    cases: set[tuple[str, str, int]] = {("", op, 13) for op in ("If", "Loop", "Scan")}  # test_control
    for family in FAMILIES:
        cases |= covered(importlib.import_module(f"torch_bridge.test_{family}").CASES)
    used = set()
    for domain, op, opset in cases:
        entry = find_operator(domain, op, opset)
        assert entry is not None
        used.add((domain, op, entry.since))
    assert set(registered()) - used == set()


def test_onnxprune_does_not_import_torch() -> None:
    script = "import sys, onnxprune, onnxprune.graph; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["bn", "folded", "dynamo"])
def test_real_models(name: str, data_folder: Path) -> None:
    graph = load(data_folder / "models" / f"resnet20_cifar10_{name}.onnx")
    feeds = {"image": np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)}
    module = assert_parity(graph, feeds, tolerance=1e-4)
    assert untouched_parameters(module, feeds) == []
    floating = {n for n, array in graph.constants.items() if array.dtype == np.float32 and array.size > 1}
    trained = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
    assert floating == trained
    assert sum(p.numel() for p in module.parameters()) > 268_000
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module(*inputs_of(graph.inputs, feeds))[0].square().mean().backward()
    optimizer.step()
    back = to_onnx(module, graph, feeds)
    assert back.proto().graph.node == graph.proto().graph.node

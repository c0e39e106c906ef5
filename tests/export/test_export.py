"""Files compute what the model does, in other runtimes, for batches the exporter did not see."""

import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from norton_plugin import CPDBlock, compress
from norton_plugin.blocks import CPDBlock3d
from norton_plugin.errors import ExportError
from norton_plugin.export import export
from norton_plugin.recipe import Decomposition, Pruning, Recipe


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_file_computes_what_the_model_does(compressed, example, tmp_path, batch):
    assert any(isinstance(module, CPDBlock) for module in compressed.modules())
    report = export(compressed, example, tmp_path / "a.onnx")
    x = torch.randn(batch, 3, 12, 16)
    with torch.no_grad():
        expected = compressed(x)
    assert torch.allclose(run(tmp_path / "a.onnx", x), expected, atol=1e-5)
    model = openvino.Core().compile_model(tmp_path / "a.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert torch.allclose(torch.from_numpy(model(x.numpy())[0]), expected, atol=1e-5)
    assert [check.runtime for check in report.checks] == ["onnxruntime", "openvino"]
    assert report.checks[0].shapes == ((1, 3, 12, 16), (3, 3, 12, 16))
    assert max(check.difference for check in report.checks) < 1e-5
    assert (report.inputs, report.outputs, report.open_axes) == (("input",), ("output",), ("batch",))


def test_constants_are_the_weights_of_the_lowered_model(small, example, tmp_path):
    report = export(small, example, tmp_path / "a.onnx")
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "a.onnx").graph.initializer}
    # norms folded: a weight and a bias for each of three layers, in fp32
    weights = 3 * 16 * 9 + 16 + 16 * 24 * 9 + 24 + 24 * 5 + 5
    assert report.weight_bytes == 4 * weights
    assert 4 * weights <= report.constant_bytes <= 4 * weights + 64  # axes of the mean
    scale = small.norm.weight / (small.norm.running_var + small.norm.eps).sqrt()
    folded = (small.first.weight * scale.view(-1, 1, 1, 1)).detach()
    assert any(c.shape == folded.shape and torch.allclose(torch.tensor(c), folded) for c in constants.values())


def test_the_model_is_left_as_it_is(compressed, example, tmp_path):
    compressed.train()
    before = {name: value.clone() for name, value in compressed.state_dict().items()}
    export(compressed, example, tmp_path / "a.pt2")
    assert compressed.training
    assert before.keys() == compressed.state_dict().keys()
    assert all(torch.equal(value, compressed.state_dict()[name]) for name, value in before.items())


def test_height_and_width_stay_open(small, example, tmp_path):
    model, _ = compress(small, example, Recipe(decomposition=Decomposition(rank=2), pruning=Pruning(keep=0.75)))
    report = export(model, example, tmp_path / "a.onnx", dynamic_size=True)
    assert report.open_axes == ("batch", "height", "width")
    shape = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in shape] == ["batch", 3, "height", "width"]
    x = torch.randn(4, 3, 20, 9)
    with torch.no_grad():
        assert torch.allclose(run(tmp_path / "a.onnx", x), model(x), atol=1e-5)


def test_a_fixed_batch_is_fixed(small, example, tmp_path):
    report = export(small, example, tmp_path / "a.onnx", batch=4)
    shape = onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in shape] == [4, 3, 12, 16]
    assert report.open_axes == ()


def test_a_program_is_loaded_by_torch(compressed, example, tmp_path):
    report = export(compressed, example, tmp_path / "a.pt2")
    x = torch.randn(6, 3, 12, 16)
    with torch.no_grad():
        (found,) = torch.export.load(tmp_path / "a.pt2").module()(x)
        assert torch.allclose(found, compressed(x), atol=1e-5)
    assert (report.format, report.opset, report.constant_bytes) == ("pt2", None, None)


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_one_asked_for(small, example, tmp_path, opset):
    assert export(small, example, tmp_path / "a.onnx", opset=opset).opset == opset
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == opset


@pytest.mark.parametrize("opset", [0, 99])
def test_an_unknown_opset_is_refused(small, example, tmp_path, opset):
    with pytest.raises(ExportError, match=rf"opset {opset} is unknown: the onnx installed here has 1 to \d+"):
        export(small, example, tmp_path / "a.onnx", opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_cannot_be_reached_is_refused(small, example, tmp_path):
    with pytest.raises(ExportError, match="opset 7 was asked for.* opset 18 only"):
        export(small, example, tmp_path / "a.onnx", opset=7)
    assert list(tmp_path.iterdir()) == []


def test_several_outputs_get_names(small, example, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small

        def forward(self, x):
            scores = self.inner(x)
            return {"scores": scores, "maps": [scores * 2, 3]}

    report = export(Two().eval(), example, tmp_path / "a.onnx")
    assert report.outputs == ("scores", "maps_0")
    x = torch.randn(2, 3, 12, 16)
    found = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(["maps_0"], {"input": x.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), 2 * small(x), atol=1e-5)


@pytest.mark.slow
def test_resnet18_of_timm(tmp_path):
    pytest.importorskip("timm")
    from norton_plugin.zoo import load_source

    source = load_source("timm:resnet18", input_size=64, num_classes=10)
    recipe = Recipe(decomposition=Decomposition(rank=2), pruning=Pruning(keep=0.5))
    model, _ = compress(source.model, source.example_inputs, recipe)
    report = export(model, source.example_inputs, tmp_path / "a.onnx")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(run(tmp_path / "a.onnx", x), model(x), atol=1e-5)
    # the constants are the lowered weights, less biases that are equal, and a few axes
    assert 0.99 * report.weight_bytes < report.constant_bytes < report.weight_bytes + 1024


@pytest.mark.parametrize("level", ["filter", "layer"])
def test_a_network_of_volumes_computes_the_same_in_both_runtimes(level, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(2, 16, 3, padding=1, bias=False), nn.BatchNorm3d(16), nn.ReLU(),
        nn.Conv3d(16, 16, (3, 3, 1), 2, padding_mode="replicate", padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip
    size = {"rank": 1} if level == "filter" else {"share": 0.6}
    x = torch.randn(3, 2, 6, 8, 10)
    settings = Decomposition(level=level, sweeps=10, restarts=1, **size)
    small = compress(net, x[:1], Recipe(decomposition=settings, pruning=Pruning(keep=0.5))).model
    assert sum(isinstance(module, CPDBlock3d) for module in small) == 2
    report = export(small, x[:1], tmp_path / "a.onnx", forms={"0": "separable", "3": "separable"})
    with torch.no_grad():
        torch.testing.assert_close(run(tmp_path / "a.onnx", x), small(x), rtol=1e-4, atol=1e-5)
    assert [check.runtime for check in report.checks] == ["onnxruntime", "openvino"]
    assert max(check.difference for check in report.checks) < 1e-5

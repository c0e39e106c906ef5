"""Quantised files: what is written, and what is said of them."""

import onnx
import pytest
import torch
from torch import nn

from norton_plugin import CPDBlock
from norton_plugin.deploy import lower_block
from norton_plugin.errors import ExportError
from norton_plugin.export import Int8, export
from norton_plugin.export.equalise import equalise_
from norton_plugin.export.processor import int8_instructions


@pytest.fixture
def images() -> list:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 3, 12, 16, generator=generator) for _ in range(24)]


def test_onnxruntime_writes_bytes(compressed, example, images, tmp_path):
    with torch.no_grad():
        labels = [int(compressed(image).argmax()) for image in images]
    report = export(compressed, example, tmp_path / "a.onnx", int8=Int8(images[:16], images, labels)).int8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.int8.onnx", "a.onnx"]
    graph = onnx.load(tmp_path / "a.int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    kernels = [t for t in graph.initializer if len(t.dims) == 4]
    assert kernels and all(tensor.data_type == onnx.TensorProto.INT8 for tensor in kernels)
    assert (report.path, report.runtime) == (tmp_path / "a.int8.onnx", "onnxruntime")
    assert (report.calibration_images, report.images) == (16, 24)
    # the labels are what the model answers, so fp32 is right everywhere, and int8 where it agrees
    assert report.fp32_top1 == 100.0
    assert report.int8_top1 == report.agreement >= 85.0
    assert 0.0 < report.difference < 0.1
    assert report.speedup == pytest.approx(report.fp32_ms / report.int8_ms)
    assert report.int8_bytes == (tmp_path / "a.int8.onnx").stat().st_size


def test_nncf_writes_an_ir(compressed, example, images, tmp_path, capsys):
    pytest.importorskip("nncf", reason="needs pip install 'norton-plugin[int8]'")
    report = export(compressed, example, tmp_path / "a.onnx", int8=Int8(images, runtime="openvino")).int8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.int8.bin", "a.int8.xml", "a.onnx"]
    assert "FakeQuantize" in (tmp_path / "a.int8.xml").read_text()
    files = [tmp_path / "a.int8.bin", tmp_path / "a.int8.xml"]
    assert report.int8_bytes == sum(path.stat().st_size for path in files)
    assert report.agreement >= 85.0
    assert (report.fp32_top1, report.int8_top1) == (None, None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", ["separable", "depthwise", "grouped"])
@pytest.mark.parametrize("clusters", [None, 1])
def test_balanced_blocks_compute_the_same(form, clusters):
    torch.manual_seed(0)
    block = _block(clusters)
    chain = lower_block(block, form)
    network, x = nn.Sequential(chain), torch.randn(4, 6, 9, 9)
    with torch.no_grad():
        before, spread = network(x), _spread(chain[0](x))
        assert equalise_(network, [x]) == len(chain) - 1
        assert torch.allclose(network(x), before, rtol=1e-4, atol=1e-5)
        assert _spread(chain[0](x)) < spread / 10


def test_balancing_makes_bytes_exact_where_components_differ(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(lower_block(_block(1), "depthwise"), nn.ReLU()).eval()
    x = torch.randn(8, 6, 9, 9)
    with torch.no_grad():
        before = _error_of_a_rounded_map(network[0], x)
        equalise_(network, [x])
        assert _error_of_a_rounded_map(network[0], x) < before / 2


def _block(clusters):
    """A block whose components differ in size by four orders, each made up for where it is read."""
    block = CPDBlock(6, 8, 3, 5, clusters=clusters, padding=1).eval()
    sizes = torch.logspace(-3, 1, 5)
    with torch.no_grad():
        block.head *= sizes.view(1, -1, 1)
        if clusters is None:
            block.horizontal /= sizes.view(1, -1, 1)
        else:
            block.mix /= sizes
    return block


def _spread(maps):
    largest = maps.abs().amax((0, 2, 3))
    return float(largest.max() / largest.min())


def _error_of_a_rounded_map(chain, x):
    """Round every map between two convolutions to 8 bits, with one scale for the map."""
    exact, rounded = x, x
    convs = list(chain)
    for index, conv in enumerate(convs):
        exact, rounded = conv(exact), conv(rounded)
        if index < len(convs) - 1:
            step = rounded.abs().max() / 127
            rounded = (rounded / step).round() * step
    return float((exact - rounded).norm() / exact.norm())


def test_a_quantiser_that_refuses_leaves_nothing(small, example, images, tmp_path, monkeypatch):
    import onnxruntime.quantization

    def refuse(*arguments, **named):
        raise ValueError("no such operator")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", refuse)
    with pytest.raises(ExportError, match="quantiser of onnxruntime refuses the model .ValueError: no such operator."):
        export(small, example, tmp_path / "a.onnx", int8=Int8(images))
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size_are_refused(small, example, tmp_path):
    with pytest.raises(ExportError, match=r"an image to calibrate on has shape \(1, 4, 12, 16\); .* \(1, 3, 12, 16\)"):
        export(small, example, tmp_path / "a.onnx", int8=Int8([torch.randn(1, 4, 12, 16)]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "name"),
    [("fpu avx512_vnni amx_int8", "AMX"), ("fpu avx512_vnni", "AVX-512 VNNI"), ("fpu avx2", "none")],
)
def test_instructions_of_the_processor(tmp_path, flags, name):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert int8_instructions(tmp_path / "cpuinfo") == name
    assert int8_instructions(tmp_path / "absent") == "unknown"

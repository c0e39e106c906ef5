"""tools/benchmarks/layer_chains.py and its neighbours: chains compute their layers, and cost what they say."""

import sys
from pathlib import Path

import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch.nn import functional

import norton_plugin

sys.path.insert(0, str(Path(norton_plugin.__file__).parents[1] / "tools/benchmarks"))

import layer_chains
import onnx_chain
import trained_like
from layer_shapes import LAYERS, Layer

STRIDED = Layer(12, 9, 2, other_filters=8)


def weight() -> torch.Tensor:
    return torch.randn(STRIDED.filters, STRIDED.channels, 3, 3, generator=torch.Generator().manual_seed(0))


def runs_as(chain: torch.nn.Module, dense: torch.Tensor, layer: Layer) -> bool:
    x = torch.randn(2, layer.channels, layer.size, layer.size)
    expected = functional.conv2d(x, dense, None, layer.stride, 1)
    with torch.no_grad():
        found = chain(x)
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason="the chain is compared in onnxruntime too")
    (exported,) = onnx_chain.run(onnx_chain.chain_session(chain, x), x.numpy())
    close = {"rtol": 1e-4, "atol": 1e-4}
    return torch.allclose(found, expected, **close) and torch.allclose(torch.from_numpy(exported), expected, **close)


def test_tucker2_of_tensorly_runs_as_its_chain():
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, (out, into)), _ = partial_tucker(weight(), [5, 7], modes=[0, 1], random_state=0)
    dense = torch.einsum("abhw,na,cb->nchw", core, out, into)
    assert runs_as(layer_chains.tucker2_chain(STRIDED, core, out, into), dense, STRIDED)


def test_spatial_svd_runs_as_its_chain():
    n, c = STRIDED.filters, STRIDED.channels
    matrix = weight().permute(1, 2, 0, 3).reshape(3 * c, 3 * n)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    vertical = (left[:, :6] * values[:6]).mT.reshape(6, c, 3)
    horizontal = right[:6].reshape(6, n, 3).permute(1, 0, 2)
    dense = torch.einsum("rch,nrw->nchw", vertical, horizontal)
    assert runs_as(layer_chains.spatial_svd_chain(STRIDED, vertical, horizontal), dense, STRIDED)


@pytest.mark.parametrize("level", ["filter", "cluster", "layer"])
def test_levels_cost_what_the_recipe_says(level):
    layer = Layer(64, 14)
    layout = layer.layout(level, 2)
    for form in layer_chains.forms_of(layout):
        chain = layer_chains.level_chain(layer, layout, form)
        extra = {"separable": 0, "depthwise": 3 * (layout.components or 128), "grouped": 3 * 128}[form]
        extra += 128 if (level, form) == ("filter", "depthwise") else 0  # the sum over R as a convolution of ones
        assert layer_chains.chain_macs(chain, layer) == layer.shape.macs(layout) + extra * layer.output_size**2


@pytest.mark.parametrize("method", ["tucker2", "svd_spatial"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_ranks_stay_within_their_macs_and_come_near(method, layer):
    budget = 0.3 * layer.shape.dense_macs
    rank = layer_chains.rank_within(layer, method, budget)
    cost = layer_chains.chain_macs(layer_chains.random_chain(layer, method, rank, "meta"), layer)
    assert 0.85 * budget < cost <= budget


def test_weights_like_trained_ones_have_their_spectra():
    decay = torch.logspace(0, -2, 16, dtype=torch.float64).sqrt()
    trained = [torch.randn(16, 16, 3, 3, dtype=torch.float64) * decay[:, None, None, None] for _ in range(4)]
    expected = torch.stack([torch.linalg.svdvals((w / w.norm()).flatten(1)).square() for w in trained]).mean(0)
    same = trained_like.trained_like(trained, 16)
    torch.testing.assert_close(torch.linalg.svdvals(same.flatten(1)).square(), expected, rtol=0.02, atol=1e-4)
    wide = torch.linalg.svdvals(trained_like.trained_like(trained, 32).flatten(1)).square()
    assert float(wide[:16].sum()) == pytest.approx(float(expected[:8].sum()), abs=0.01)
    assert float(wide.sum()) == pytest.approx(1)

"""tools/benchmarks/comparison_macs.py: the MACs stated are those of the chains of convolutions, at any stride."""

import pytest
import torch
from torch import nn

from norton_plugin.cost import count_cost
from norton_plugin.errors import DecompositionError

SHAPE = (12, 8, 3, 5)
METHODS = ("tucker2", "svd_channels", "svd_spatial")


@pytest.fixture(scope="module")
def macs(load_tool):
    return load_tool("benchmarks/comparison_macs.py")


@pytest.fixture(scope="module")
def methods(load_tool):
    return load_tool("benchmarks/comparison_methods.py")


def chain(method: str, rank: int, stride: int) -> nn.Sequential:
    """The convolutions that a method runs as."""
    filters, channels, kh, kw = SHAPE
    if method == "tucker2":
        into = round(rank * channels / filters)
        steps = [
            nn.Conv2d(channels, into, 1),
            nn.Conv2d(into, rank, (kh, kw), stride, (kh // 2, kw // 2)),
            nn.Conv2d(rank, filters, 1),
        ]
    elif method == "svd_channels":
        steps = [nn.Conv2d(channels, rank, (kh, kw), stride, (kh // 2, kw // 2)), nn.Conv2d(rank, filters, 1)]
    else:
        steps = [
            nn.Conv2d(channels, rank, (kh, 1), (stride, 1), (kh // 2, 0)),
            nn.Conv2d(rank, filters, (1, kw), (1, stride), (0, kw // 2)),
        ]
    return nn.Sequential(*steps)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_macs_are_those_of_the_chain(macs, method: str, stride: int) -> None:
    x = torch.zeros(1, SHAPE[1], 14, 10)
    net = chain(method, 6, stride)
    sizes = {"input_size": (14, 10), "output_size": (14 // stride, 10 // stride)}
    assert tuple(net(x).shape[2:]) == sizes["output_size"]
    assert macs.chain_macs(SHAPE, 6, method=method, **sizes) == count_cost(net, lambda: net(x)).macs


@pytest.mark.parametrize("method", METHODS)
def test_stored_numbers_are_the_macs_of_one_position(macs, methods, method: str) -> None:
    size = {"input_size": (1, 1), "output_size": (1, 1)}
    stored = methods.LAYER_METHODS[method].parameters(SHAPE, 6)
    assert macs.chain_macs(SHAPE, 6, method=method, **size) == stored


@pytest.mark.parametrize("method", METHODS)
def test_the_rank_is_the_largest_within_the_budget(macs, method: str) -> None:
    sizes = {"input_size": (8, 8), "output_size": (4, 4)}
    budget = macs.chain_macs(SHAPE, 5, method=method, **sizes)
    assert macs.rank_for_macs(SHAPE, budget, method=method, **sizes) == 5
    assert macs.rank_for_macs(SHAPE, budget - 1, method=method, **sizes) == 4
    assert macs.rank_for_macs(SHAPE, 1, method=method, **sizes) == 0


def test_unknown_method(macs) -> None:
    with pytest.raises(DecompositionError, match="layer_cp"):
        macs.chain_macs(SHAPE, 1, method="layer_cp", input_size=(4, 4), output_size=(4, 4))

"""The check by lookup on networks that no list of ours names, and what it says of networks that were spoilt."""

import json

import pytest
import torch
from independent.by_lookup import check, places
from torch import nn

FAST = ("lcnet_050", "mnasnet_small")
NETWORKS = [
    *FAST,
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "mobilenetv3_small_075",
            "repghostnet_058",
            "tinynet_e",
            "regnetx_004",
            "dla46_c",
            "mobilenetv4_conv_small_035",
            "ese_vovnet19b_slim",
            "seresnet18",
        )
    ),
]


@pytest.mark.parametrize("rank", [None, 1], ids=["pruned", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_compressed_network_is_the_dense_one_with_zeros(name, rank):
    finding = check(name, rank=rank)
    assert finding.error < 1e-12
    assert finding.kept < 0.6
    assert finding.spread > 1e-5


def test_the_networks_are_on_no_list_of_ours(repository):
    listed = json.dumps(json.loads((repository / "tools" / "coverage_models.json").read_text()))
    names = [getattr(entry, "values", (entry,))[0] for entry in NETWORKS]
    assert len(names) == 10
    assert [name for name in names if f'"{name}"' in listed or f'timm:{name}"' in listed] == []


def of(small, kind=nn.Conv2d):
    """The first layer of several filters that reads several channels."""
    return next(m for m in small.modules() if isinstance(m, kind) and m.groups == 1 and m.in_channels > 3)


def test_filters_in_another_order_are_found():
    def swap(small):
        conv = of(small)
        conv.weight.data[[0, 1]] = conv.weight.data[[1, 0]]

    assert check("lcnet_050", spoil=swap).error > 1e-6


def test_statistics_of_another_channel_are_found():
    def swap(small):
        norm = next(m for m in small.modules() if isinstance(m, nn.BatchNorm2d))
        norm.running_mean[[0, 1]] = norm.running_mean[[1, 0]]

    assert check("lcnet_050", spoil=swap).error > 1e-9


def test_a_number_that_is_not_of_the_dense_network_is_found():
    def change(small):
        of(small).weight.data[0, 0] += 1e-9

    with pytest.raises(LookupError, match="found in the dense model"):
        check("lcnet_050", spoil=change)


def test_numbers_are_looked_up_one_by_one():
    large = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert places(torch.tensor([[4.0, 6.0]]), large).tolist() == [[False] * 3, [True, False, True]]
    with pytest.raises(LookupError, match="2 numbers, 1 of them"):
        places(torch.tensor([4.0, 4.0]), large)

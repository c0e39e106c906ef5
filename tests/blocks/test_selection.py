"""Cuts of blocks whose filters share components: sizes, places, gradients, and what is refused."""

import pytest
import torch

from norton_plugin.blocks import CPDBlock
from norton_plugin.cpd import CoupledFactors
from norton_plugin.errors import SurgeryError


def block_of(cluster, *, clusters, rank=3, groups=1, **options):
    torch.manual_seed(0)
    cluster = torch.tensor(cluster)
    n, size = len(cluster), max(int(cluster.bincount().max()), -(-len(cluster) // clusters))
    made = CPDBlock(4, n, 3, rank, clusters=clusters, cluster_size=size, groups=groups, **options)
    shapes = (clusters, rank, 4 // groups), (clusters, rank, 3), (clusters, rank, 3), (n, rank)
    made.set_factors(CoupledFactors(*(torch.randn(shape) for shape in shapes), cluster))
    return made


def test_empty_clusters_go_and_places_are_given_anew():
    block = block_of([0, 2, 1, 2, 0, 1, 2], clusters=3)
    weight = block.weight.detach().clone()
    block.select_([1, 4, 6], "filters")
    assert (block.clusters, block.cluster_size, block.components, block.out_channels) == (2, 2, 6, 3)
    assert block.slot.tolist() == [2, 0, 3] and block.cluster.tolist() == [1, 0, 1]
    torch.testing.assert_close(block.weight, weight[[1, 4, 6]])
    block.select_([0, 2], "filters")
    assert (block.clusters, block.cluster_size, block.slot) == (1, 2, None)
    assert set(block.state_dict()) == {"head", "vertical", "horizontal", "mix", "bias"}
    torch.testing.assert_close(block.weight, weight[[1, 6]])


def test_components_go_by_as_many_as_every_cluster_can_spare():
    block = block_of([0, 0, 1, 1], clusters=2, rank=4)
    with torch.no_grad():
        block.mix[:2, [0, 2]] = 0  # the first cluster uses two of its components,
        block.mix[2:, 1] = 0  # the second one three
    weight = block.weight.detach().clone()
    block.select_([0, 1, 2, 3], "filters")
    assert block.rank == 3 and block.components == 6 and block.head.shape == (2, 3, 4)
    torch.testing.assert_close(block.weight, weight)


def test_a_mix_of_zeros_leaves_one_component():
    block = block_of([0, 0, 0], clusters=1)
    block.mix.data.zero_()
    block.select_([0, 2], "filters")
    assert block.rank == 1 and block.weight.abs().max() == 0


def test_components_may_be_named_in_any_order():
    first, second = (block_of([0, 1, 0, 1], clusters=2) for _ in range(2))
    first.select_([0, 2, 4, 5], "components")
    second.select_([5, 2, 4, 0], "components")
    assert first.rank == second.rank == 2 and torch.equal(first.weight, second.weight)


def test_gradients_and_flags_stay_with_what_is_kept():
    block = block_of([0, 1, 0, 1], clusters=2)
    block.vertical.requires_grad_(False)
    block(torch.randn(1, 4, 5, 5)).square().sum().backward()
    grads = {name: getattr(block, name).grad.clone() for name in ("head", "mix", "bias")}
    block.select_([1, 3], "filters")
    assert torch.equal(block.mix.grad, grads["mix"][[1, 3]]) and torch.equal(block.bias.grad, grads["bias"][[1, 3]])
    assert torch.equal(block.head.grad, grads["head"][1:]) and not block.vertical.requires_grad
    block.select_([0, 2], "components")
    assert torch.equal(block.mix.grad, grads["mix"][[1, 3]][:, [0, 2]])


@pytest.mark.parametrize(
    ("keep", "axis", "message"),
    [
        ([0, 1, 2], "components", r"\[3, 0\] components would stay in the 2 clusters; every one has to keep as many"),
        ([0, 3, 3, 1], "components", "every one has to keep as many"),
        ([6], "components", r"indices \[6\] do not select from 6 components"),
        ([0, 1, 2], "filters", r"\[2, 1\] filters would stay in the 2 channel groups; every one has to keep as many"),
        ([0, 1], "filters", r"\[2, 0\] filters would stay"),
        ([4], "filters", "do not select from 4 filters"),
        ([2], "channels", "do not select from 2 channels"),
        ([], "channels", r"indices \[\] do not select"),
        ([0], "clusters", r"axis 'clusters' is unknown; expected one of \('filters', 'channels', 'components'\)"),
    ],
)
def test_what_cannot_be_kept_changes_nothing(keep, axis, message):
    block = block_of([0, 0, 1, 1], clusters=2, groups=2)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    text = repr(block)
    with pytest.raises(SurgeryError, match=message):
        block.select_(keep, axis)
    assert repr(block) == text and all(torch.equal(v, before[k]) for k, v in block.state_dict().items())


def test_components_of_filters_that_share_nothing():
    torch.manual_seed(0)
    block = CPDBlock(4, 3, 3, 3)
    head, vertical, horizontal = (p.detach().clone() for p in (block.head, block.vertical, block.horizontal))
    block.select_([0, 2, 4, 5, 6, 7], "components")
    rows = torch.tensor([[0, 2], [1, 2], [0, 1]])
    expected = sum(
        torch.einsum("nc,nh,nw->nchw", *(f[torch.arange(3), rows[:, r]] for f in (head, vertical, horizontal)))
        for r in range(2)
    )
    assert block.rank == 2 and block.components == 6
    torch.testing.assert_close(block.weight, expected)

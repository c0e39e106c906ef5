"""Blocks of every level against the dense convolution with the rebuilt weight, in random geometries.

Each case is one of the target ``levels`` of tools/fuzz.py: outputs of all four forms and their gradients, lowering,
state dict, copies, the structure as JSON, and cuts of filters, channels and components.
"""

import random
import sys
from pathlib import Path

import pytest
import torch

from norton_plugin.blocks import CPDBlock, CPDLinear, clusters, cpd_linear, forms, selection
from norton_plugin.blocks.forms import BlockFactors
from norton_plugin.deploy import lowering
from norton_plugin.errors import SurgeryError

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    from fuzzing import levels
    from fuzzing.verdict import OK, Wrong
finally:
    sys.path.remove(str(TOOLS))

BATCH = 30


def cases(numbers):
    for number in numbers:
        assert levels.run(None, random.Random(f"levels {number}"), number) == OK, number


@pytest.mark.parametrize("first", range(0, 150, BATCH))
def test_a_block_of_any_level_is_the_convolution_with_its_weight(first):
    cases(range(first, first + BATCH))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(150, 750, 100))
def test_hundreds_of_further_cases(first):
    cases(range(first, first + 100))


def wrong_mix(self, rows):
    """Empty places are left out, so that filters of clusters of unequal sizes slip."""
    return rows if self.slot is None else rows.index_select(0, self.slot.argsort())


def wrong_order(factors):
    """Filters stay at their places."""
    return []


def dropped_first(block, mix):
    """The first components go, used or not."""
    if block.rank > 1:
        keep = torch.arange(block.components).view(block.clusters, -1)[:, 1:].flatten()
        selection._keep_components_(block, keep)


def places_from_the_first(cluster, count, *, size=0):
    """Filters take places in their own order, whichever their cluster is."""
    return torch.arange(len(cluster)), max(size, int(torch.bincount(cluster, minlength=count).max()))


@pytest.mark.parametrize(
    ("home", "name", "wrong"),
    [
        (BlockFactors, "placed", wrong_mix),
        (lowering, "_order", wrong_order),
        (selection, "_drop_unused_", dropped_first),
        (selection, "slots_of", places_from_the_first),
        (cpd_linear, "select_linear_", lambda layer, keep, axis: None),
    ],
)
def test_the_cases_find_what_is_wrong(home, name, wrong, monkeypatch):
    monkeypatch.setattr(home, name, wrong)
    with pytest.raises((Wrong, RuntimeError)):
        cases(range(60))


def test_a_form_that_forgets_the_mix_is_found(monkeypatch):
    own = forms.FORM_FUNCTIONS["grouped"]

    def without(x, factors, geometry):
        return own(x, factors if factors.mix is None else factors._replace(mix=torch.ones_like(factors.mix)), geometry)

    monkeypatch.setitem(forms.FORM_FUNCTIONS, "grouped", without)
    with pytest.raises(Wrong, match="form grouped differs"):
        cases(range(60))


def test_one_component_per_filter_and_no_mix_is_nortons_block_bit_for_bit():
    """K = N with a mix of ones computes what NORTON's block computes; without clusters nothing changed at all."""
    torch.manual_seed(0)
    own = CPDBlock(5, 6, 3, 2, padding=1).eval()
    shared = CPDBlock(5, 6, 3, 2, padding=1, clusters=6).eval()
    assert set(own.state_dict()) == {"head", "vertical", "horizontal", "bias"} and own.components == 12
    assert set(shared.state_dict()) == {"head", "vertical", "horizontal", "mix", "slot", "bias"}
    shared.load_state_dict({**own.state_dict(), "mix": torch.ones(6, 2), "slot": torch.arange(6)})
    x = torch.randn(2, 5, 7, 7)
    for form in forms.FORMS:
        own.form = shared.form = form
        torch.testing.assert_close(shared(x), own(x), rtol=1e-5, atol=1e-6)
    expected = torch.nn.functional.conv2d(x, own.head.reshape(12, 5, 1, 1))
    expected = torch.nn.functional.conv2d(expected, own.vertical.reshape(12, 1, 3, 1), padding=(1, 0), groups=12)
    horizontal = own.horizontal.unsqueeze(-2)
    own.form = "separable"
    assert torch.equal(own(x), torch.nn.functional.conv2d(expected, horizontal, own.bias, (1, 1), (0, 1), (1, 1), 6))


@pytest.mark.parametrize("level", [{"clusters": 1}, {"clusters": 4}, {}])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_fresh_block_has_the_variance_of_a_fresh_convolution(level, kernel):
    torch.manual_seed(0)
    found = [float(CPDBlock(64, 128, kernel, 8, **level).weight.detach().var()) for _ in range(12)]
    expected = float(torch.nn.Conv2d(64, 128, kernel).weight.detach().var())
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cluster_size": 3}, "cluster_size 3 is given without clusters; give both or none"),
        ({"clusters": 9}, "clusters 9 is not a whole number from 1 to 8"),
        ({"clusters": 0}, "clusters 0 is not a whole number from 1 to 8"),
        ({"clusters": True}, "clusters True is not a whole number"),
        ({"clusters": 2.0}, "clusters 2.0 is not a whole number"),
        ({"clusters": 3, "groups": 2}, "clusters 3 must be a multiple of groups 2"),
        ({"clusters": 3, "cluster_size": 2}, "cluster_size 2 is not a whole number from 3 to 8"),
        ({"clusters": 2, "cluster_size": 9}, "cluster_size 9 is not a whole number from 4 to 8"),
    ],
)
def test_contradictory_clusters_are_refused(arguments, message):
    with pytest.raises(SurgeryError, match=message):
        CPDBlock(4, 8, 3, 2, **arguments)


def test_a_state_with_places_that_no_block_has_is_refused_and_changes_nothing():
    block = CPDBlock(4, 8, 3, 2, clusters=4, groups=2)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    for slot, message in (
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, 8]), "a place of its own from 0 to 7"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, -1]), "a place of its own from 0 to 7"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, 6]), "a place of its own from 0 to 7"),
        (torch.tensor([4, 1, 2, 3, 0, 5, 6, 7]), "clusters of another of the 2 channel groups"),
        (torch.arange(8, dtype=torch.float32), r"is torch.float32 of shape \(8,\), expected torch.int64"),
        (torch.arange(7), r"of shape \(7,\), expected torch.int64 of shape \(8,\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            block.load_state_dict({**before, "head": torch.zeros_like(before["head"]), "slot": slot})
        assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    moved = torch.tensor([3, 1, 2, 0, 4, 7, 6, 5])
    block.load_state_dict({**before, "slot": moved})
    assert block.cluster.tolist() == [1, 0, 1, 0, 2, 3, 3, 2]


def test_linear_layers_say_what_is_wrong():
    for arguments, message in (
        ((4, 3, 0), "components 0 is not a whole number"),
        ((4, 3, 1.5), "components 1.5 is not"),
        ((0, 3, 1), "in_features 0"),
    ):
        with pytest.raises(SurgeryError, match=message):
            CPDLinear(*arguments)
    layer = CPDLinear(4, 3, 2)
    with pytest.raises(SurgeryError, match=r"mix has shape \(2, 2\), the layer expects \(3, 2\)"):
        layer.set_factors(torch.ones(2, 4), torch.ones(2, 2))
    assert clusters.even_clusters(5, 2).tolist() == [0, 0, 0, 1, 1]

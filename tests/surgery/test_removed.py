"""What pruning says it removed is what is missing from the weights."""

import copy

import pytest
import torch

from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.removed import RemovedChannels, removed_by
from norton_plugin.zoo import load_source
from tests.networks import Dense, Residual, settle


@pytest.mark.parametrize(
    "build",
    [lambda: Residual(8), Dense, lambda: load_source("cifar:resnet20").model],
    ids=["stream", "groups", "padded"],
)
def test_what_stays_of_a_weight_is_named(build):
    torch.manual_seed(0)
    model = settle(build())
    own = copy.deepcopy(model)
    report = prune_(own, torch.randn(1, 3, 16, 16), Pruning(keep=0.5, round_to=1))
    pruned = 0
    for name, module in own.named_modules():
        old = getattr(model.get_submodule(name), "weight", None)
        if old is None:
            continue
        lost = report.removed.get(name, RemovedChannels())
        expected = old[lost.kept_outputs(len(old))]
        if old.dim() > 1:
            expected = expected[:, lost.kept_inputs(old.shape[1])]
        assert torch.equal(module.weight, expected)
        pruned += expected.shape != old.shape
    assert pruned > 5


def test_a_later_trace_numbers_what_the_first_one_left():
    layer = torch.nn.Conv2d(4, 4, 1)

    def group(size: int, role: str) -> ChannelGroup:
        own = tuple(range(size))
        return ChannelGroup("layer", size, 1, (Member(layer, "layer", role, own, own),), None)

    first = removed_by([(group(6, "out"), (0, 3)), (group(5, "in"), (4,))], {})
    assert first == {"layer": RemovedChannels((0, 3), (4,))}
    # 1, 2, 4 and 5 are left, and now called 0 to 3.
    second = removed_by([(group(4, "both"), (0, 3))], first)
    assert second == {"layer": RemovedChannels((0, 1, 3, 5), (4,))}
    assert second["layer"].kept_outputs(6) == [2, 4]
    assert second["layer"].kept_inputs(5) == [0, 1, 2, 3]

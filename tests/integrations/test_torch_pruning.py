"""CPDBlockPruner and PABSImportance in the hands of plain Torch-Pruning."""

import pytest
import torch
import torch_pruning as tp
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import SurgeryError
from norton_plugin.integrations.torch_pruning import CPDBlockPruner, PABSImportance, pruner_options
from norton_plugin.pabs import pabs_distance, removal_order
from norton_plugin.recipe import Pruning
from norton_plugin.surgery.prune import prune_


def block(**options):
    torch.manual_seed(0)
    return CPDBlock(8, 12, 3, 2, padding=1, **options)


def test_filters_go_and_the_others_stay():
    layer, x = block(), torch.randn(2, 8, 5, 5)
    expected = layer(x)[:, [0, 2, 3, 4, 6, 7, 8, 9, 10]]
    pruned = CPDBlockPruner().prune_out_channels(layer, [1, 5, 11])
    assert pruned is layer and layer.out_channels == 9
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_input_channels_go_in_every_group_alike():
    layer, x = block(groups=2), torch.randn(2, 8, 5, 5)
    masked = x.clone()
    masked[:, [1, 5]] = 0  # the second channel of either group
    expected = layer(masked)
    CPDBlockPruner().prune_in_channels(layer, [1, 5])
    assert layer.in_channels == 6
    assert torch.allclose(layer(x[:, [0, 2, 3, 4, 6, 7]]), expected, atol=1e-6)
    with pytest.raises(SurgeryError, match="same channels in each"):
        CPDBlockPruner().prune_in_channels(layer, [0, 4])


@pytest.mark.parametrize("indices", [[12], [-1], list(range(12))])
def test_indices_are_checked(indices):
    """Torch-Pruning's graph does not call the check of its base class."""
    layer = block()
    with pytest.raises(SurgeryError, match="of the 12 of CPDBlock"):
        CPDBlockPruner().prune_out_channels(layer, indices)
    assert layer.out_channels == 12 and layer.head.shape == (12, 2, 8)


class Net(nn.Sequential):
    """A block between two convolutions."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 1), block(), nn.ReLU(), nn.Conv2d(12, 4, 1))


def options(net):
    return {"importance": PABSImportance(), "pruning_ratio": 0.5, "ignored_layers": [net[3]], **pruner_options()}


def test_options_are_fresh_in_every_call():
    """Torch-Pruning's own defaults are shared between all pruners of a process."""
    first, second = pruner_options(), pruner_options()
    for name, value in first.items():
        assert value == second[name] or name == "customized_pruners"
        assert value is not second[name]
    assert CPDBlock in first["root_module_types"] and isinstance(first["customized_pruners"][CPDBlock], CPDBlockPruner)


def test_importance_is_the_removal_order():
    net, example = Net().eval(), torch.randn(1, 3, 6, 6)
    graph = tp.DependencyGraph().build_dependency(net, example, customized_pruners={CPDBlock: CPDBlockPruner()})
    group = graph.get_pruning_group(net[1], graph.get_pruner_of_module(net[1]).prune_out_channels, list(range(12)))
    order = removal_order(pabs_distance([factor.detach() for factor in net[1].factors]))
    assert torch.equal(PABSImportance()(group).argsort(), order)
    assert not torch.equal(PABSImportance(criterion="vbd")(group).argsort(), order)


def test_the_filters_removed_are_the_first_of_the_order():
    net, x = Net().eval(), torch.randn(1, 3, 6, 6)
    order = removal_order(pabs_distance([factor.detach() for factor in net[1].factors])).tolist()
    masked = Net().eval()
    with torch.no_grad():
        masked[3].weight[:, order[:6]] = 0
    arguments = options(net)
    arguments["ignored_layers"].append(net[0])
    tp.pruner.BasePruner(net, x, **arguments).step()
    assert net[1].out_channels == 6 and net[3].in_channels == 6
    assert torch.allclose(net(x), masked(x), atol=1e-6)


def test_a_class_that_is_not_registered_is_passed_over():
    """Why the exact class has to be given, and why the result has to be looked at."""

    class Derived(CPDBlock):
        pass

    net = Net().eval()
    net[1].__class__, net[1].form = Derived, "separable"
    tp.pruner.BasePruner(net, torch.randn(1, 3, 6, 6), **options(net)).step()
    assert net[1].out_channels == 12


@pytest.mark.parametrize(
    "settings", [{"rank": 2}, {"level": "layer", "components": 9}, {"level": "cluster", "clusters": 2, "components": 8}]
)
def test_its_state_dict_is_saved_and_loaded(tmp_path, settings):
    """``tp.state_dict`` holds every attribute, and ``tp.load_state_dict`` assigns every one, derived ones as well."""

    def net(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 16))
        recipe = {"decomposition": {**settings, "linear": "components" in settings}, "pruning": {"keep": 1.0}}
        return compress(model, torch.randn(1, 3, 8, 8), Recipe.from_dict(recipe)).model.eval()

    first, second, x = net(0), net(1), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        prune_(first, x, Pruning(keep=0.5, round_to=1))
        assert not torch.allclose(first(x), second(x))
        torch.save(tp.state_dict(first), tmp_path / "state.pth")
        tp.load_state_dict(second, torch.load(tmp_path / "state.pth", weights_only=False))
        assert second[2].out_channels == first[2].out_channels == 4
        assert torch.equal(first(x), second(x))


def test_a_derived_attribute_takes_no_other_value():
    layer = block()
    layer.level, layer.components, layer.factors = layer.level, layer.components, layer.factors
    for name, value in (("level", "layer"), ("components", 3), ("factors", None)):
        with pytest.raises(AttributeError, match=f"{name} of a CPDBlock follows from its parameters"):
            setattr(layer, name, value)

"""Integers that modules keep: where a size came from, and what it becomes."""

import torch
from torch import nn

from norton_plugin.channels.hard_coded_sizes import shared_sizes, sources_of, update_sizes_
from norton_plugin.channels.records import HardCodedSize


class Layer(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


def entry(size, labels, *stack, whole=None):
    return HardCodedSize(tuple(stack), size, torch.tensor(labels), None if whole is None else torch.tensor(whole))


def found(entry, counted=None, class_of=None):
    counted = torch.ones(20, dtype=torch.bool) if counted is None else counted
    return [
        ([name for _, name in source.attributes], source.labels.tolist(), source.factor)
        for source in sources_of(entry, counted, class_of)
    ]


def test_names_of_widths_come_before_others_and_counts_of_other_things_never():
    layer = Layer(embed_dim=4, other=4, num_heads=4, patch_size=4, _hidden=4, ratio=4.0)
    assert found(entry(4, [1, 2, 3, 4], layer)) == [(["embed_dim"], [1, 2, 3, 4], 1)]
    assert found(entry(4, [1, 2, 3, 4], Layer(other=4))) == [(["other"], [1, 2, 3, 4], 1)]
    assert found(entry(4, [1, 2, 3, 4], Layer(num_heads=4, truth=True))) == []


def test_the_innermost_of_three_modules_that_hold_the_size():
    outer, middle, inner = Layer(dim=4), Layer(dim=4), Layer(dim=5)
    [source] = sources_of(entry(4, [1, 2, 3, 4], outer, middle, inner), torch.ones(9, dtype=torch.bool))
    assert source.attributes == ((middle, "dim"),)
    assert found(entry(4, [1, 2, 3, 4], outer, inner, inner, inner)) == []


def test_lists_parts_repeats_and_multiples():
    assert found(entry(4, [1, 2, 3, 4], Layer(dims=[2, 4]))) == [(["dims"], [1, 2, 3, 4], 1)]
    assert found(entry(4, [1, 2, 3, 4], Layer(dims=[2.5, 4]))) == []
    # The size itself and that of the whole that was split.
    both = Layer(split_dim=2, dim=4)
    assert found(entry(2, [1, 2], both, whole=[1, 2, 3, 4])) == [
        (["split_dim"], [1, 2], 1),
        (["dim"], [1, 2, 3, 4], 1),
    ]
    # Six places, but three distinct channels, each in two heads.
    class_of = torch.tensor([0, 1, 2, 3, 1, 2, 3])
    assert found(entry(6, [1, 2, 3, 4, 5, 6], Layer(head_dim=3)), torch.ones(7, dtype=torch.bool), class_of) == [
        (["head_dim"], [1, 2, 3, 4, 5, 6], 2)
    ]
    # Twice an attribute whose name is that of a width; not of one with any other name.
    assert found(entry(4, [1, 2, 3, 4], Layer(dim=2))) == [(["dim"], [1, 2, 3, 4], 2)]
    assert found(entry(4, [1, 2, 3, 4], Layer(other=2))) == []


def test_one_attribute_that_counts_two_lists_keeps_them_equally_long():
    layer = Layer(dim=3)
    first, second = entry(3, [1, 2, 3], layer), entry(3, [4, 5, 6], layer)
    [constraint] = shared_sizes([first, second, first], 7)
    assert (constraint.source.tolist(), constraint.target.tolist()) == ([1, 2, 3], [4, 5, 6])
    assert shared_sizes([first, entry(3, [4, 5, 6], Layer(dim=3))], 7) == []


def test_sizes_follow_what_is_removed():
    layer = Layer(dim=4, sizes=(4, 6), other=7, half=2)
    class_of = torch.arange(7)
    before = torch.ones(7, dtype=torch.bool)
    alive = before.clone()
    alive[[2, 3]] = False
    update_sizes_([entry(4, [1, 2, 3, 4], layer)], alive, before, class_of)
    assert (layer.dim, layer.sizes, layer.other, layer.half) == (2, (4, 6), 7, 2)
    layer = Layer(sizes=(4, 6))
    update_sizes_([entry(4, [1, 2, 3, 4], layer)], alive, before, class_of)
    assert layer.sizes == (2, 6)
    layer = Layer(dim=2)
    update_sizes_([entry(4, [1, 2, 3, 4], layer)], alive, before, class_of)
    assert layer.dim == 1
    # What was removed before does not count: two of three are left of it, and one goes.
    layer, after = Layer(dim=2), alive.clone()
    after[4] = False
    update_sizes_([entry(4, [1, 2, 3, 4], layer)], after, alive, class_of)
    assert layer.dim == 1

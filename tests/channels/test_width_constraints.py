"""Widths that the code computes from one another, solved on literal labels."""

import pytest
import torch
from labelled import classes_of, follow

from norton_plugin.channels.deadline import Deadline
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.records import WidthConstraint
from norton_plugin.channels.width_constraints import solve
from norton_plugin.errors import TracingError


def solved(count, constraints, united=()):
    table = LabelTable()
    table.allocate(count)
    for a, b in united:
        table.unite(torch.tensor(a), torch.tensor(b))
    solve(table, [WidthConstraint(torch.tensor(a), torch.tensor(b)) for a, b in constraints], Deadline())
    return classes_of(table)


@pytest.mark.parametrize(
    ("constraint", "united", "unions", "pins"),
    [
        # The same channels in another order: nothing to do.
        (([1, 2, 3], [3, 1, 2]), [], [], {}),
        # Other channels, as many: united position by position.
        (([1, 2, 3], [4, 5, 6]), [], [[1, 4], [2, 5], [3, 6]], {}),
        # The same classes under other labels: nothing more to do.
        (([1, 2], [3, 4]), [([1, 2], [4, 3])], [[1, 4], [2, 3]], {}),
        # A width of four computed from heads of two: channels at the same positions of the heads.
        (([1, 2, 3, 4], [5, 6]), [], [[1, 3, 5], [2, 4, 6]], {}),
        (([5, 6], [1, 2, 3, 4]), [], [[1, 3, 5], [2, 4, 6]], {}),
        # Twice as many of each class: in proportion.
        (([1, 2, 1, 2], [2, 1]), [], [], {}),
        # As many labels, but of other shares.
        (([1, 1, 2], [1, 2, 2]), [], [[1, 2]], {}),
        # Neither is a multiple of the other.
        (([1, 2, 3], [4, 5]), [], [], dict.fromkeys([1, 2, 3, 4, 5], "computed-width")),
    ],
)
def test_one_constraint(constraint, united, unions, pins):
    assert solved(6, [constraint], united) == (unions, pins)


def test_a_constraint_between_widths_of_different_size_goes_first():
    """Heads of two bring the widths of four into proportion; position by position, all would become one channel."""
    wide = ([1, 2, 3, 4], [5, 6, 7, 8])
    heads = [([1, 2, 3, 4], [9, 10]), ([5, 6, 7, 8], [10, 9])]
    unions, pins = solved(10, [wide, *heads])
    assert unions == [[1, 3, 6, 8, 9], [2, 4, 5, 7, 10]] and pins == {}


def test_uniting_for_one_constraint_can_violate_another():
    unions, _ = solved(6, [([1, 2], [3, 4]), ([1, 2, 3, 4], [5, 6])])
    assert unions == [[1, 3, 5], [2, 4, 6]]


def test_the_deadline_is_kept():
    with pytest.raises(TracingError):
        solve(LabelTable(), [], Deadline(-1.0))


def test_a_read_width_gives_a_constraint_and_a_plain_integer_a_hard_coded_size():
    labels = torch.tensor([[1, 2, 3, 4]])

    def read(x, y):
        return y.reshape(1, x.shape[1])

    notes = follow(read, (torch.zeros(1, 4), labels), (torch.zeros(1, 4), labels + 4)).trace.notes
    [constraint] = notes.width_constraints
    assert (constraint.source.tolist(), constraint.target.tolist()) == ([1, 2, 3, 4], [5, 6, 7, 8])
    assert notes.hard_coded_sizes == []
    notes = follow(lambda x: x.reshape(1, 2, 2), (torch.zeros(1, 4), labels)).trace.notes
    [last] = notes.hard_coded_sizes
    assert (last.size, last.labels.tolist(), last.whole.tolist()) == (2, [1, 2], [1, 2, 3, 4])
    assert notes.width_constraints == []


def test_a_width_with_something_added_pins_both():
    def read(x, y):
        return y.reshape(1, x.shape[1] + 1)

    x, y = torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5]])
    assert follow(read, (torch.zeros(1, 2), x), (torch.zeros(1, 3), y)).pins == dict.fromkeys(
        [1, 2, 3, 4, 5], "computed-width"
    )

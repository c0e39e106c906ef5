"""How each kind of operation runs in the masked model, on literal numbers."""

import pytest
import torch
import torch.nn.functional as F
from labelled import follow
from torch import nn

from norton_plugin.channels import masking
from norton_plugin.channels.masked_replay import MaskedReplay
from norton_plugin.channels.operations import Operation


def masked(function, x, labels, removed):
    """The output of ``function(x)`` with these labels removed, and the steps that the trace noted."""
    label_map = torch.tensor(labels)
    label_map = label_map.view(1, -1, *(1,) * (x.dim() - 2)).expand(x.shape) if label_map.dim() == 1 else label_map
    steps = follow(function, (x, label_map)).trace.notes.steps
    mask = torch.zeros(int(label_map.max()) + 1, dtype=torch.bool)
    mask[removed] = True
    with torch.no_grad(), MaskedReplay(steps, mask):
        return function(x), steps


X = torch.tensor([[1.0, 2.0, 4.0]])


def test_removed_channels_count_as_zero_in_a_product():
    weight = torch.tensor([[1.0], [10.0], [100.0]])
    out, steps = masked(lambda x: x @ weight, X, [1, 2, 3], [2])
    assert out.tolist() == [[401.0]] and steps["mm", 0].masking is masking.ZERO_FIRST
    assert X.tolist() == [[1.0, 2.0, 4.0]]


def test_the_second_operand_is_masked_where_a_bias_comes_first():
    out, steps = masked(lambda x: torch.addmm(torch.ones(1), x, torch.ones(3, 1)), X, [1, 2, 3], [1, 3])
    assert out.tolist() == [[3.0]] and steps["addmm", 0].masking is masking.ZERO_SECOND


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.mean(1), [2.5]),
        (lambda x: x.mean((0, 1)), 2.5),
        (lambda x: x.sum(1), [5.0]),
        (lambda x: x.var(1), [4.5]),
        (lambda x: torch.linalg.vector_norm(x, dim=1), [17**0.5]),
        (lambda x: x.view(1, 3, 1, 1).max(1)[0].flatten(), [4.0]),
        (lambda x: -(-x).view(1, 3, 1, 1).amax(1).flatten(), [1.0]),
    ],
)
def test_statistics_are_those_of_the_kept_channels(function, expected):
    out, _ = masked(function, X, [1, 2, 3], [2])
    assert out.tolist() == pytest.approx(expected)


def test_positions_of_a_dimension_that_stays_are_kept():
    out, _ = masked(lambda x: x.sum(1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [[1, 2], [3, 4]], [1, 2])
    assert out.shape == (2,) and out[1] == 7.0


def test_the_largest_of_what_is_kept_is_below_the_largest():
    out, _ = masked(lambda x: x.view(1, 3, 1, 1).amax(1).flatten(), X, [1, 2, 3], [3])
    assert out.tolist() == [2.0]


def test_a_layer_norm_takes_its_statistics_over_the_kept_channels():
    out, steps = masked(
        lambda x: F.layer_norm(x, (3,), torch.tensor([1.0, 2, 3]), torch.zeros(3), 0.0), X, [1, 2, 3], [2]
    )
    assert out.tolist() == [pytest.approx([-1.0, 0.0, 3.0])]
    assert [step.masking for step in steps.values()] == [masking.LAYER_NORM]


def test_a_group_norm_takes_its_statistics_over_the_kept_channels_of_each_group():
    x = torch.tensor([1.0, 5.0, 9.0, 0.0, 1.0, 4.0]).view(1, 6, 1, 1)
    out, steps = masked(lambda x: F.group_norm(x, 2, eps=0.0), x, [1, 2, 3, 4, 5, 6], [1, 4])
    assert out.flatten().tolist() == pytest.approx([0, -1, 1, 0, -1, 1])
    assert steps["native_group_norm", 0].masking is masking.GROUP_NORM


def test_a_batch_norm_in_training_takes_its_statistics_over_the_kept_positions():
    x = torch.tensor([[[1.0, 100.0, 3.0]]])  # (B, C, L): the labels number positions
    labels = torch.tensor([[[1, 2, 3]]])
    out, steps = masked(lambda x: F.batch_norm(x, None, None, training=True, eps=1e-12), x, labels.tolist(), [2])
    assert out.flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert [step.masking for step in steps.values()] == [masking.BATCH_NORM]


def test_a_kernel_slides_along_the_kept_channels_side_by_side():
    kernel = torch.tensor([[[1.0, 10.0, 100.0]]])
    x = torch.tensor([[[1.0, 2.0, 4.0, 8.0]]])
    out, steps = masked(lambda x: F.conv1d(x, kernel, padding=1), x, [[[1, 2, 3, 4]]], [2])
    assert out.flatten().tolist() == [410.0, 0.0, 841.0, 84.0]
    assert steps["convolution", 0].masking is masking.AMONG_KEPT


def test_what_is_not_removed_runs_as_it_is():
    out, _ = masked(lambda x: x.mean(1), X, [1, 2, 3], [])
    assert out.tolist() == pytest.approx([7 / 3])


def test_operations_of_one_name_are_told_apart_by_their_order():
    def twice(x):
        return torch.ones(1, 1).mean(1), x.mean(1), torch.tensor([[6.0, 0.0, 0.0]]).mean(1)

    (first, second, third), steps = masked(twice, X, [1, 2, 3], [3])
    assert list(steps) == [("mean", 1)]
    assert (first.tolist(), second.tolist(), third.tolist()) == ([1.0], [1.5], [2.0])


def test_a_rule_can_only_note_what_its_operation_declares():
    trace = follow(lambda: None).trace
    trace.operation = Operation("mine", masked_by=(masking.OVER_KEPT,))
    with pytest.raises(ValueError, match="mine does not declare this among masked_by"):
        trace.mask([torch.tensor([1])], by=masking.ZERO_FIRST)
    trace.operation = Operation("mine")
    with pytest.raises(ValueError, match="mine does not declare"):
        trace.mask([torch.tensor([1])])


@pytest.mark.parametrize(
    ("kind", "consumes"),
    [
        (masking.ZERO_FIRST, True),
        (masking.ZERO_SECOND, True),
        (masking.OVER_KEPT, True),
        (masking.NORM_OVER_KEPT, True),
        (masking.AMONG_KEPT, False),
        (masking.LAYER_NORM, False),
        (masking.GROUP_NORM, False),
        (masking.BATCH_NORM, False),
    ],
)
def test_norms_pass_channels_on_and_sums_consume_them(kind, consumes):
    assert kind.consumes is consumes


def test_the_masked_network_is_the_network_of_the_kept_channels():
    """By hand: a layer of three outputs, a norm and a layer that reads them, built again with two."""
    torch.manual_seed(0)
    first, norm, last = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)
    nn.init.normal_(norm.weight)
    model, x = nn.Sequential(first, norm, last), torch.randn(4, 2)
    # first: 1-3 | 4-5 | 6-8; norm: 9-11 | 12-14; last: single output, 15-17
    steps = follow(model, (x, None), module=model).trace.notes.steps
    mask = torch.zeros(18, dtype=torch.bool)
    mask[[2, 7, 10, 13, 16]] = True
    keep = [0, 2]
    with torch.no_grad():
        hidden = F.layer_norm(
            F.linear(x, first.weight[keep], first.bias[keep]), (2,), norm.weight[keep], norm.bias[keep]
        )
        with MaskedReplay(steps, mask):
            torch.testing.assert_close(model(x), F.linear(hidden, last.weight[:, keep], last.bias))

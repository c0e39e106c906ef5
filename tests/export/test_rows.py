"""Objects found, compared in any order."""

import pytest
import torch

from norton_plugin.export.rows import compare_rows


def found(count=12, seed=0):
    """Boxes, labels, scores and masks."""
    generator = torch.Generator().manual_seed(seed)
    boxes = 100 * torch.rand(count, 4, generator=generator)
    labels = torch.randint(5, (count,), generator=generator)
    return [boxes, labels, torch.rand(count, generator=generator), torch.rand(count, 1, 7, 7, generator=generator)]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_does_not_matter(seed):
    outputs = found()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    assert compare_rows(outputs, [tensor[order] for tensor in outputs], tolerance=1e-3) == (0.0, 12, 12)


def test_the_largest_difference_is_told():
    outputs, others = found(), found()
    others[0][3, 2] += 2e-4 * outputs[0].max()
    difference, same, count = compare_rows(outputs, others, tolerance=1e-3)
    assert difference == pytest.approx(2e-4, rel=1e-3) and (same, count) == (12, 12)


@pytest.mark.parametrize(
    ("place", "index", "change"),
    [
        (0, (3, 2), 1.0),
        (1, (3,), 1),
        (2, (3,), 0.01),
        (3, (3, 0, 2, 2), 0.01),
        (0, (3, 2), float("nan")),
        (3, (3, 0, 2, 2), float("nan")),
    ],
    ids=["box", "label", "score", "mask", "NaN in a box", "NaN in a mask"],
)
def test_each_output_counts(place, index, change):
    outputs, others = found(), found()
    others[place][index] += change
    assert compare_rows(outputs, others, tolerance=1e-3)[1:] == (11, 12)


def test_objects_that_only_one_of_the_two_finds():
    outputs = found()
    fewer = [tensor[:9] for tensor in outputs]
    assert compare_rows(outputs, fewer, tolerance=1e-3)[1:] == (9, 12)
    assert compare_rows(fewer, outputs, tolerance=1e-3)[1:] == (9, 12)


def test_one_object_is_not_found_twice():
    outputs = found()
    twice = [torch.cat([tensor[:6], tensor[:6]]) for tensor in outputs]
    assert compare_rows(outputs, twice, tolerance=1e-3)[1:] == (6, 12)


def test_nothing_found():
    nothing = [tensor[:0] for tensor in found()]
    assert compare_rows(nothing, nothing, tolerance=1e-3) == (0.0, 0, 0)
    assert compare_rows(found(), nothing, tolerance=1e-3) == (0.0, 0, 12)
    assert compare_rows(nothing, found(), tolerance=1e-3) == (0.0, 0, 12)


def test_other_shapes_are_not_alike():
    outputs = found()
    assert compare_rows(outputs, outputs[:3], tolerance=1e-3)[1:] == (0, 12)
    assert compare_rows(outputs, [*outputs[:3], outputs[3][:, :, :6]], tolerance=1e-3)[1:] == (0, 12)
    assert compare_rows(outputs, [outputs[0][:5], *outputs[1:]], tolerance=1e-3)[1:] == (0, 12)

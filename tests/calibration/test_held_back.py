"""Which batches are held back."""

import pytest
import torch

from norton_plugin.calibration import split_batches


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([4], []),
        ([2, 2], [2]),
        ([4] * 8, [4]),
        ([4] * 17, [4, 4]),
        ([8, 3], [3]),
        ([2, 5, 64], [2]),
    ],
)
def test_one_batch_in_eight_and_never_more_than_half_of_the_images(sizes, held):
    batches = [torch.zeros(size, 3, 4, 4) for size in sizes]
    fitted_on, others = split_batches(batches)
    assert [len(batch) for batch in others] == held
    assert sorted(len(batch) for batch in [*fitted_on, *others]) == sorted(sizes)

"""Smallest singular values against LAPACK, on easy and on clustered spectra."""

import pytest
import torch

from norton_plugin.pabs.smallest import smallest_singular_values


def random_rotations(size, count, generator):
    return torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (2, 2), (3, 3), (4, 4), (4, 6), (6, 4), (9, 9)])
def test_equals_lapack_on_random_matrices(rows, columns):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(300, rows, columns, generator=generator, dtype=torch.float64) / 10
    expected = torch.linalg.svdvals(matrices)[:, -1]
    got = smallest_singular_values(matrices.permute(1, 2, 0).contiguous())
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-15)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 1.0, 1.0, 0.5],
        [0.5, 0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5, 0.5 - 1e-9],  # the sums over eigenvalues cannot tell these apart: needs the step back
        [0.9, 0.3, 0.3, 0.3],
        [0.9, 0.3, 0.3 + 1e-5, 0.3],
        [1.0, 1.0, 1e-9, 1e-9],
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 0.2, 0.2, 0.2, 0.2],
        [10.0**-k for k in range(12)],
    ],
)
def test_clustered_and_tiny_values(values):
    generator = torch.Generator().manual_seed(1)
    size = len(values)
    middle = torch.tensor(values, dtype=torch.float64)
    matrices = random_rotations(size, 200, generator) * middle @ random_rotations(size, 200, generator)
    got = smallest_singular_values(matrices.permute(1, 2, 0).contiguous())
    torch.testing.assert_close(got, torch.full_like(got, min(values)), rtol=0, atol=1e-14)

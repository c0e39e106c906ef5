"""Principal angles against constructed subspaces and scipy."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from scipy.linalg import subspace_angles

from norton_plugin.errors import DecompositionError
from norton_plugin.pabs import largest_angle_matrix, principal_angles
from norton_plugin.pabs.angles import row_subspaces

HALF_PI = math.pi / 2
SCIPY_ERROR = 5e-8  # scipy takes the sine form of some large angles, which costs half the digits there


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_at_angles(angles, dim, *, seed=0):
    """Two row bases at exactly these principal angles, in a random frame and mixed within each span."""
    size = len(angles)
    theta = torch.tensor(angles, dtype=torch.float64)
    first, second = torch.zeros(2, size, dim, dtype=torch.float64)
    first[:, :size] = torch.eye(size, dtype=torch.float64)
    second[:, :size] = torch.diag(theta.cos())
    second[:, size : 2 * size] = torch.diag(theta.sin())
    frame = torch.linalg.qr(draw(dim, dim, seed=seed))[0]
    mix_a, mix_b = torch.linalg.qr(draw(2, size, size, seed=seed + 1))[0]
    return mix_a @ first @ frame, mix_b @ second @ frame


def scipy_matrix(factor):
    rows = [matrix.T.numpy() for matrix in factor]
    count = len(rows)
    pairs = [[0.0 if i == j else subspace_angles(rows[i], rows[j]).max() for j in range(count)] for i in range(count)]
    return torch.tensor(pairs, dtype=torch.float64)


@pytest.mark.parametrize(
    "angles",
    [
        [0.3],
        [1e-9],
        [HALF_PI],
        [1.2, 0.4],
        [1e-9, 1e-12],
        [HALF_PI - 1e-9, 1e-9],
        [HALF_PI, HALF_PI, 0.0],
        [0.1415, 0.1415, 0.1415],  # on either side of the change from cosine to sine form
        [0.1416, 0.1, 0.0],
        [1e-5, 1e-6, 1e-7, 1e-8],
        [1.5, 1.0, 0.5, 0.2, 0.1],
    ],
)
def test_known_angles(angles):
    a, b = pair_at_angles(angles, 12)
    expected = torch.tensor(angles, dtype=torch.float64)
    torch.testing.assert_close(principal_angles(a, b), expected, rtol=1e-6, atol=2e-15)
    matrix = largest_angle_matrix(torch.stack([a, b]))
    assert matrix[0, 1].item() == pytest.approx(angles[0], rel=1e-6, abs=2e-15)
    if angles[0] > 0.1:
        assert matrix[0, 1].item() == pytest.approx(angles[0], abs=1e-14)


@pytest.mark.parametrize(
    ("filters", "rank", "dim"), [(20, 1, 9), (20, 2, 3), (20, 2, 9), (16, 3, 9), (12, 4, 64), (10, 6, 9), (8, 8, 20)]
)
def test_equals_scipy_on_random_factors(filters, rank, dim):
    factor = draw(filters, rank, dim)
    factor[1] = factor[0] + 1e-9 * draw(rank, dim, seed=5)
    factor[3] = 1e-4 * factor[2] + 1e-7 * draw(rank, dim, seed=6)
    torch.testing.assert_close(largest_angle_matrix(factor), scipy_matrix(factor), rtol=0, atol=SCIPY_ERROR)
    every = principal_angles(factor[0], factor[5])
    torch.testing.assert_close(
        every, torch.from_numpy(subspace_angles(factor[0].T.numpy(), factor[5].T.numpy())), rtol=0, atol=SCIPY_ERROR
    )


def test_all_pairs_agree_with_single_pairs_to_rounding():
    factor = draw(14, 4, 10)
    single = torch.tensor([[float(principal_angles(a, b)[0]) for b in factor] for a in factor], dtype=torch.float64)
    torch.testing.assert_close(largest_angle_matrix(factor), single.fill_diagonal_(0), rtol=0, atol=1e-13)


def test_rank_one_is_the_angle_between_lines():
    rows = draw(15, 1, 6)
    unit = rows[:, 0] / rows[:, 0].norm(dim=1, keepdim=True)
    expected = (unit @ unit.T).abs().clamp(max=1).acos().fill_diagonal_(0)
    torch.testing.assert_close(largest_angle_matrix(rows), expected, rtol=0, atol=1e-14)


def test_symmetric_with_a_zero_diagonal_and_within_range():
    matrix = largest_angle_matrix(draw(30, 3, 7))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.zeros(30, dtype=torch.float64))
    assert 0 <= matrix.min() <= matrix.max() <= HALF_PI
    assert matrix.dtype == torch.float64


def test_scale_order_and_mixing_of_components_do_not_matter():
    factor = draw(12, 3, 8)
    expected = largest_angle_matrix(factor)
    scaled = factor * torch.tensor([1e-6, 1.0, -1e6], dtype=torch.float64).view(1, 3, 1)
    mixed = draw(12, 3, 3, seed=9) @ factor
    for other in (scaled, factor[:, [2, 0, 1]], mixed):
        torch.testing.assert_close(largest_angle_matrix(other), expected, rtol=0, atol=1e-12)


def test_orthogonal_filters_are_at_a_right_angle():
    eye = torch.eye(6)
    matrix = largest_angle_matrix(torch.stack([eye[:2], eye[2:4], eye[4:6]]))
    expected = torch.full((3, 3), HALF_PI, dtype=torch.float64).fill_diagonal_(0)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("rank", "dim"), [(3, 3), (5, 3), (1, 1)])
def test_spans_of_the_whole_space_say_nothing(rank, dim):
    factor = draw(10, rank, dim)
    assert not row_subspaces(factor).informative
    assert torch.equal(largest_angle_matrix(factor), torch.zeros(10, 10, dtype=torch.float64))


def test_repeated_components_lower_the_rank():
    factor = draw(6, 3, 9)
    factor[1, 2] = -7 * factor[1, 0]
    factor[2, 1:] = 0
    factor[3] = 0
    assert row_subspaces(factor).rank.tolist() == [3, 2, 1, 0, 3, 3]
    assert row_subspaces(factor.float()).rank.tolist() == [3, 2, 1, 0, 3, 3]
    matrix = largest_angle_matrix(factor)
    assert matrix[3].abs().max() == 0
    nonzero = [0, 1, 2, 4, 5]
    torch.testing.assert_close(matrix[nonzero][:, nonzero], scipy_matrix(factor[nonzero]), rtol=0, atol=SCIPY_ERROR)


def test_a_span_inside_another_is_at_angle_zero():
    factor = draw(2, 3, 9)
    factor[1] = 0
    factor[1, 0] = factor[0].sum(0)
    assert largest_angle_matrix(factor)[0, 1] < 1e-14
    assert len(principal_angles(factor[0], factor[1])) == 1
    assert len(principal_angles(factor[0], 0 * factor[1])) == 0


def test_chunks_do_not_change_the_result():
    factor = draw(40, 3, 9)
    factor[20:] = factor[:20] + 1e-6 * draw(20, 3, 9, seed=3)
    whole = largest_angle_matrix(factor, chunk_bytes=1 << 30)
    for size in (1, 5_000, 50_000):
        torch.testing.assert_close(largest_angle_matrix(factor, chunk_bytes=size), whole, rtol=1e-6, atol=1e-14)


def test_extreme_magnitudes():
    factor = draw(5, 2, 6)
    expected = largest_angle_matrix(factor)
    for scale in (1e-290, 1e290):
        torch.testing.assert_close(largest_angle_matrix(factor * scale), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (torch.ones(3, 4), "shape"),
        (torch.ones(3, 0, 4), "shape"),
        (torch.ones(3, 2, 4, dtype=torch.int64), "int64"),
        (torch.full((3, 2, 4), float("nan")), "NaN"),
        (torch.full((3, 2, 4), float("inf")), "infinite"),
    ],
)
def test_bad_factors_raise(factor, words):
    with pytest.raises(DecompositionError, match=words):
        largest_angle_matrix(factor)


def test_bad_pairs_and_chunks_raise():
    with pytest.raises(DecompositionError, match="same D"):
        principal_angles(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(DecompositionError, match="chunk_bytes is 0"):
        largest_angle_matrix(draw(3, 1, 2), chunk_bytes=0)


@pytest.mark.slow
def test_two_thousand_filters_fit_in_four_gibibytes():
    program = (
        "import torch, resource\n"
        "from norton_plugin.pabs import pabs_distance, removal_order\n"
        "draw = lambda d: torch.randn(2048, 4, d, generator=torch.Generator().manual_seed(0))\n"
        "order = removal_order(pabs_distance([draw(512), draw(3), draw(3)]))\n"
        "assert order.unique().numel() == 2048\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert resource.getpagesize() < peak < 4 * 2**30

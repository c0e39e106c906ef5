"""Cost curves: each level by its closed form, and errors that are those of the decomposition."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.insight import cost_curves, curve_tables
from norton_plugin.recipe import Scope
from norton_plugin.surgery import from_conv


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(6, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 24, 1),
        nn.Conv2d(24, 24, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


@pytest.fixture(scope="module")
def curves(model):
    return {curve.name: curve for curve in cost_curves(model, torch.randn(1, 6, 8, 8))}


def test_every_level_follows_its_closed_form(curves):
    n, c = 16, 6
    dense = 9 * n * c
    for rank in range(1, 5):  # 9C / (C + 6) = 4.5
        filter_level = rank * n * (c + 6)
        layer = filter_level // (c + 6 + n)
        cluster = 4 * (filter_level // (4 * (c + 6 + n // 4)))
        spatial = filter_level // (3 * (c + n))
        spatial = 16 if spatial in (16, 17) else spatial  # to fill vector lanes
        expected = {
            "filter": (None, rank, None, filter_level / dense),
            "cluster": (4, cluster // 4, cluster, cluster * (c + 6 + n // 4) / dense),
            "layer": (1, layer, layer, layer * (c + 6 + n) / dense),
            "spatial": (1, spatial, spatial, spatial * 3 * (c + n) / dense),
        }
        points = [point for point in curves["0"].points if point.step == rank]
        found = {p.level: (p.clusters, p.rank, p.components, pytest.approx(p.share)) for p in points}
        assert found == expected
    assert {point.step for point in curves["0"].points} == {1, 2, 3, 4}


def test_at_stride_2_the_mix_runs_after_the_stride(curves):
    # maps of 8x8 to 4x4: 64 positions before, 32 and 16 after the two steps of the kernel; the mix runs on 16
    dense = 9 * 16 * 16 * 16
    per_rank = 16 * (16 * 64 + 3 * 32 + 3 * 16)
    per_component = 16 * 64 + 3 * 32 + 3 * 16 + 16 * 16
    (rank,) = [point for point in curves["1"].points if point.level == "filter"]
    (layer,) = [point for point in curves["1"].points if point.level == "layer"]
    assert (rank.step, rank.share) == (1, pytest.approx(per_rank / dense))
    assert layer.components == per_rank // per_component
    assert layer.share == pytest.approx(layer.components * per_component / dense)


def test_kernels_of_1x1_and_linear_layers_go_by_eighths(curves):
    for name, c, n in (("2", 16, 24), ("6", 24, 10)):
        found = {p.step: (p.components, pytest.approx(p.share)) for p in curves[name].points if p.level == "layer"}
        expected = {step: int(step / 8 * n * c / (n + c)) for step in range(1, 8)}
        assert found == {step: (m, m * (n + c) / (n * c)) for step, m in expected.items() if m}
    assert {point.level for point in curves["2"].points} == {"cluster", "layer"}
    assert {point.level for point in curves["6"].points} == {"layer"}


def test_groups_have_components_of_their_own(curves):
    clusters = {point.level: point.clusters for point in curves["3"].points}
    assert clusters == {"filter": None, "cluster": 8, "layer": 2, "spatial": 2}


def test_errors_are_those_of_the_decomposition(model):
    (curve,) = cost_curves(model, torch.randn(1, 6, 8, 8), layers=["0"], nmse=True)
    weight = model[0].weight.detach()
    for point in curve.points:
        sizes = {"rank": point.rank} if point.level == "filter" else {"components": point.components}
        clusters = 4 if point.level == "cluster" else None
        block = from_conv(model[0], level=point.level, clusters=clusters, **sizes)
        error = float((block.weight.detach() - weight).square().sum() / weight.square().sum())
        assert point.nmse == pytest.approx(error, rel=1e-4)
    by_level = [
        [p.nmse for p in curve.points if p.level == level] for level in ("filter", "cluster", "layer", "spatial")
    ]
    assert all(errors == sorted(errors, reverse=True) and errors[-1] < errors[0] for errors in by_level)


def test_only_what_is_wanted(model):
    example = torch.randn(1, 6, 8, 8)
    assert [curve.name for curve in cost_curves(model, example, scope=Scope(exclude=("0", "6")))] == ["1", "2", "3"]
    with pytest.raises(RecipeError, match="--layer pattern 'conv' matches none"):
        cost_curves(model, example, layers=["conv"])
    with pytest.raises(SurgeryError, match="no layer can be decomposed at any level: outside the scope"):
        cost_curves(model, example, layers=["0"], scope=Scope(exclude=("0",)))


def test_layers_of_one_shape_share_a_table_with_their_mean_error():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)))
    curves = cost_curves(model, torch.randn(1, 8, 6, 6), nmse=True)
    (table,) = curve_tables(curves)
    stream = io.StringIO()
    Console(file=stream, width=110).print(table)
    lines = stream.getvalue().splitlines()
    assert lines[0].strip() == "0 and 1 of the same shape"
    assert lines[1].strip() == "Conv2d 3x3 8 -> 8, 20.7 k MACs"
    (row,) = [line.split() for line in lines if line.startswith("rank 2 ")]
    # 2 N (C + 6) of 9 N C; M = 10 at C + 6 + N each; 4 clusters: M = 12 at C + 6 + N / 4
    errors = [sum(p.nmse for c in curves for p in c.points if (p.step, p.level) == (2, level)) / 2
              for level in ("filter", "layer", "cluster", "spatial")]  # fmt: skip
    means = [f"{error:.3f}" for error in errors]
    sizes = [["38.9", "%"], ["10", "38.2", "%"], ["12", "33.3", "%"], ["4", "33.3", "%"]]  # M = 4 at 3 (C + N) each
    assert row == ["rank", "2", *(cell for size, mean in zip(sizes, means, strict=True) for cell in [*size, mean])]


def test_a_narrow_table_leaves_out_what_says_the_least():
    torch.manual_seed(0)
    curves = cost_curves(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), torch.randn(1, 16, 6, 6), nmse=True)
    stream = io.StringIO()
    Console(file=stream, width=80).print(*curve_tables(curves))
    shown = stream.getvalue()
    assert "spatial:" in shown and "not shown at this width: MACs, MACs, MACs" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("rank 2 ")]
    assert len(row) == 2 + 3 + 3 * 2

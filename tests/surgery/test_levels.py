"""Decompose, prune, save and load at every level, on networks with every kind of coupling."""

import copy
from dataclasses import replace

import pytest
import torch
from scipy.cluster.hierarchy import linkage
from torch import Tensor, nn

from norton_plugin.artifact import load, save
from norton_plugin.blocks import ConvBlock, CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.cost import count_cost
from norton_plugin.deploy import lower_
from norton_plugin.modules.snapshot import Snapshot
from norton_plugin.pabs import removal_order
from norton_plugin.pipeline import compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.surgery import decompose_, from_conv, prune_, surgeon
from norton_plugin.surgery import factorise as factorise_module
from norton_plugin.surgery.distances import layer_distance

QUICK = {"restarts": 1, "sweeps": 10, "allow_more_macs": True}
LEVELS = {
    "filter": Decomposition(rank=2, **QUICK),
    "cluster": Decomposition(level="cluster", clusters=3, rank=2, **QUICK),
    "layer": Decomposition(level="layer", rank=2, **QUICK),
    "auto": Decomposition(level="auto", clusters=2, share=0.6, **QUICK),
    "everything": Decomposition(level="layer", share=0.7, linear=True, **QUICK),
    "spatial": Decomposition(level="spatial", share=0.7, linear=True, **QUICK),
}


class Grouped(nn.Module):
    """A stem, a grouped 3x3 convolution, a strided one held under two names, and a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.twice = nn.Conv2d(24, 24, 3, padding=1)
        self.alias = self.twice
        self.narrow = nn.Conv2d(24, 16, 1)
        self.hidden = nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.grouped(torch.relu(self.stem(x))))
        y = torch.relu(self.narrow(torch.relu(self.alias(torch.relu(self.twice(y))))))
        return self.head(torch.relu(self.hidden(y.mean((2, 3)))))


@pytest.fixture(params=["residual", "dense", "grouped"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return Grouped().eval() if request.param == "grouped" else request.getfixturevalue(request.param)


def blocks(model: nn.Module) -> dict[str, ConvBlock | CPDLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConvBlock | CPDLinear)}


@pytest.mark.parametrize("level", LEVELS)
def test_compressed_saved_and_loaded(net, image, level, tmp_path):
    original = copy.deepcopy(net)
    recipe = Recipe(decomposition=LEVELS[level], pruning=Pruning(keep=0.5, round_to=1))
    small, report = compress(net, image, recipe)
    found = blocks(small)
    assert found and all(group.error < 1e-4 for group in report.pruning.groups)
    assert all(layer.error < 1e-5 for layer in report.decomposition.layers)
    kept = {group.root: group.after for group in report.pruning.groups}
    assert kept and all(2 * group.after == group.before for group in report.pruning.groups)
    expected = small(image)
    assert (expected - original(image)).abs().max() > 1e-3
    loaded = load(save(tmp_path / "a", small, report.structure), copy.deepcopy(original))
    assert torch.equal(loaded(image), expected) and repr(loaded) == repr(small)
    for name, block in blocks(loaded).items():
        assert type(block) is type(found[name]) and block.components == found[name].components
    lowered = copy.deepcopy(small)
    assert lower_(lowered) == len({id(block) for block in found.values()})
    assert not blocks(lowered)
    torch.testing.assert_close(lowered(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["cluster", "layer", "everything"])
def test_levels_are_those_that_were_asked_for(net, image, level):
    report = decompose_(net, LEVELS[level])
    names = dict(net.named_modules())
    for layer in report.layers:
        block = names[layer.names[0]]
        assert layer.components == block.components
        if isinstance(block, CPDLinear):
            assert level == "everything" and layer.clusters == 1
        else:
            each = 3 if level == "cluster" else 1
            assert (block.clusters, layer.clusters) == (each * block.groups, each * block.groups)
            assert (block.vertical is None) == (block.kernel_size == (1, 1))
    has_linear = any(isinstance(module, CPDLinear) for module in names.values())
    assert has_linear == (level == "everything")


def test_convolutions_become_spatial_svds_and_kernels_of_one_pixel_their_svd(net):
    report = decompose_(net, LEVELS["spatial"])
    found, records = blocks(net), {name: layer for layer in report.layers for name in layer.names}
    assert {type(block) for block in found.values()} >= {SpatialSVDBlock, CPDLinear}
    for name, block in found.items():
        pointwise = isinstance(block, CPDLinear) or block.kernel_size == (1, 1)
        assert isinstance(block, SpatialSVDBlock) != pointwise
        assert (records[name].level, block.level) == (("layer",) * 2 if pointwise else ("spatial",) * 2)
        assert records[name].components == block.components
        assert isinstance(block, CPDLinear) or records[name].clusters == block.clusters == block.groups
        assert (records[name].largest_component is None) != pointwise


@pytest.mark.parametrize("level", ["cluster", "layer", "everything", "spatial"])
def test_nmse_is_that_of_the_block(net, level):
    dense = copy.deepcopy(net)
    for layer in decompose_(net, LEVELS[level]).layers:
        old, new = (model.get_submodule(layer.names[0]).weight.detach().double() for model in (dense, net))
        rows = (old - new).flatten(1).square().sum(1), old.flatten(1).square().sum(1)
        assert layer.nmse_layer == pytest.approx(float(rows[0].sum() / rows[1].sum()), rel=1e-4, abs=1e-9)
        assert layer.nmse_mean == pytest.approx(float((rows[0] / rows[1]).mean()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("level", ["layer", "spatial"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_the_share_is_met_in_every_layer_as_it_runs(net, image, share, level):
    before = count_cost(net, lambda: net(image))
    options = Decomposition(level=level, share=share, linear=True, restarts=1, sweeps=3)
    report = decompose_(net, options, map_sizes=before.map_sizes)
    after = count_cost(net, lambda: net(image)).layer_macs
    assert len(report.layers) >= 3
    for layer in report.layers:
        name = layer.names[0]
        assert 0 < after[name] <= share * before.layer_macs[name]


def test_auto_takes_the_level_of_the_lowest_error():
    torch.manual_seed(0)
    shared = nn.Conv2d(16, 16, 3)  # all filters mix the same four components: exact at the layer level alone
    terms = torch.einsum("rc,rh,rw->rchw", torch.randn(4, 16), torch.randn(4, 3), torch.randn(4, 3))
    shared.weight.data = torch.einsum("nr,rchw->nchw", torch.randn(16, 4), terms)
    own = nn.Conv2d(16, 16, 3)  # a single component for each filter: exact at the filter level alone
    own.weight.data = torch.einsum("nc,nh,nw->nchw", torch.randn(16, 16), torch.randn(16, 3), torch.randn(16, 3))
    rows = nn.Conv2d(16, 16, 3)  # three dense columns of kernels, mixed by rows: exact as a spatial SVD alone
    rows.weight.data = torch.einsum("rch,nrw->nchw", torch.randn(3, 16, 3), torch.randn(16, 3, 3))
    model = nn.Sequential(shared, own, rows)
    report = decompose_(model, Decomposition(level="auto", rank=1))
    assert [layer.level for layer in report.layers] == ["layer", "filter", "spatial"]
    assert max(layer.nmse_layer for layer in report.layers) < 1e-6
    assert model[0].mix is not None and model[1].mix is None and isinstance(model[2], SpatialSVDBlock)


@pytest.mark.parametrize(("stride", "level"), [(1, "layer"), (2, "spatial"), ((1, 2), "layer")])
@pytest.mark.parametrize(("ratio", "close"), [(1.04, True), (1.06, False)])
def test_auto_favours_the_spatial_svd_at_a_stride_where_it_errs_nearly_as_little(
    stride, level, ratio, close, monkeypatch
):
    own = factorise_module._spatial

    def as_told(jobs, decomposition, count):
        errors = {id(t.module): f.layer_nmse for t, f in layer_level(jobs)}
        found = own(jobs, decomposition, count)
        return [replace(f, layer_nmse=ratio * errors[id(t.module)]) for (_, t, _), f in zip(jobs, found, strict=True)]

    def layer_level(jobs):
        shared = [(place, target, next(x for x in target.layouts if x.level == "layer")) for place, target, _ in jobs]
        options = Decomposition(level="auto", share=0.3, **QUICK)
        return zip(
            [t for _, t, _ in shared], factorise_module._shared_components(shared, options, lambda: None), strict=True
        )

    monkeypatch.setattr(factorise_module, "_spatial", as_told)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, stride=stride))
    report = decompose_(model, Decomposition(level="auto", share=0.3, **QUICK))
    assert [layer.level for layer in report.layers] == [level if close else "layer"]


@pytest.mark.parametrize("level", ["cluster", "layer", "everything", "spatial"])
def test_a_group_that_differs_is_rolled_back_exactly(image, level, monkeypatch):
    torch.manual_seed(0)
    model = Grouped().eval()
    decompose_(model, LEVELS[level])
    modules, state = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
    plain = {name: dict(vars(block)) for name, block in blocks(model).items()}
    expected = model(image)
    monkeypatch.setattr(surgeon, "relative_error", lambda *_: 1.0)
    report = prune_(model, image, Pruning(keep=0.5, round_to=1), require=False)
    assert not report.groups and {entry.code for entry in report.skipped} >= {"differs"}
    assert list(model.modules()) == modules and torch.equal(model(image), expected)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for name, block in blocks(model).items():
        attributes = {k: v for k, v in vars(block).items() if not k.startswith("_")}
        assert attributes == {k: v for k, v in plain[name].items() if not k.startswith("_")}


def test_a_snapshot_brings_back_places_and_sizes():
    block = CPDBlock(4, 9, 3, 2, clusters=3)
    slot, text = block.slot, repr(block)
    snapshot = Snapshot([block])
    block.select_([0, 1], "filters")
    assert block.slot is None and block.clusters == 1
    snapshot.restore_()
    assert block.slot is slot and repr(block) == text and block.cluster_size == 3


@pytest.mark.parametrize(
    "options",
    [dict(level="layer", rank=2), dict(level="cluster", clusters=4, rank=2), dict(level="spatial", rank=2)],
)
def test_filters_go_by_the_angle_between_the_rebuilt_filters(options):
    """Oracle: angles from numpy, the closest pair from scipy's single linkage."""
    torch.manual_seed(0)
    block = from_conv(nn.Conv2d(8, 20, 3, dtype=torch.float64), sweeps=20, **options)
    distance = layer_distance(block)
    rows = block.weight.detach().flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True)
    angles = (rows @ rows.T).abs().clamp(max=1).arccos().fill_diagonal_(0)
    torch.testing.assert_close(distance.matrix, angles, rtol=1e-6, atol=1e-7)
    upper = angles[tuple(torch.triu_indices(20, 20, 1))].numpy()
    first = {int(i) for i in linkage(upper, "single")[0, :2]}
    order = removal_order(distance).tolist()
    assert order[0] in first
    other = (first - {order[0]}).pop()
    assert angles[order[0]].sum() <= angles[other].sum()


def test_removal_follows_the_definition_step_by_step():
    """The closest remaining pair loses the filter that is nearer to all others."""
    torch.manual_seed(1)
    block = from_conv(nn.Conv2d(8, 12, 3, dtype=torch.float64), level="layer", components=10, sweeps=20)
    matrix = layer_distance(block).matrix
    order, left = removal_order(layer_distance(block)).tolist(), list(range(12))
    for gone in order[:10]:
        pairs = [(float(matrix[i, j]), i, j) for i in left for j in left if i < j]
        _, i, j = min(pairs)
        sums = {n: float(matrix[n, left].sum()) for n in (i, j)}
        assert gone == min(sums, key=sums.__getitem__)
        left.remove(gone)


def test_components_and_clusters_that_no_filter_uses_any_more_go_with_the_filters(image):
    torch.manual_seed(0)
    model = nn.Sequential(CPDBlock(3, 9, 3, 4, clusters=3, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 1)).eval()
    with torch.no_grad():
        model[0].mix[:, 3] = 0
        model[0].mix[0, 3] = 1  # filter 0 alone uses the last component
    before, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    keep = {(0, 4, 5): (2, 4, [0, 1, 1]), (1, 3, 7): (3, 3, [0, 1, 2]), (6, 7, 8): (1, 3, [0, 0, 0])}
    for kept, (clusters, rank, places) in keep.items():
        pruned, scores = copy.deepcopy(model), torch.zeros(9).index_fill(0, torch.tensor(kept), 1.0)
        report = prune_(pruned, image, Pruning(keep=0.34, round_to=1), criterion=lambda group, s=scores: s)
        block = pruned[0]
        assert report.largest_error < 1e-6 and len(report.groups) == 1
        assert (block.clusters, block.rank, block.components) == (clusters, rank, clusters * rank)
        assert block.cluster.tolist() == places and (block.slot is None) == (clusters == 1)
        assert block.head.shape == (clusters, rank, 3) and block.mix.shape == (3, rank)
        torch.testing.assert_close(block.weight, before[list(kept)])
        assert torch.equal(block.bias, bias[list(kept)])


def test_components_of_a_linear_layer_go_with_the_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(CPDLinear(6, 8, 4), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].mix[:, 3] = 0
        model[0].mix[0, 3] = 1
    weight = model[0].weight.detach().clone()
    prune_(model, torch.randn(4, 6), Pruning(keep=0.5, round_to=1), criterion=lambda group: torch.arange(8.0))
    assert model[0].components == 3 and model[0].out_features == 4
    torch.testing.assert_close(model[0].weight, weight[4:])


class ManyGroups(nn.Module):
    """A convolution of more groups than channels in each: whole groups go."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=8)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.grouped(torch.relu(self.stem(x)))))


@pytest.mark.parametrize("level", ["layer", "spatial"])
def test_whole_groups_of_a_block_go_and_it_comes_back_from_its_artefact(image, level, tmp_path):
    torch.manual_seed(0)
    net = ManyGroups().eval()
    original = copy.deepcopy(net)
    recipe = Recipe(decomposition=Decomposition(level=level, rank=2, **QUICK), pruning=Pruning(keep=0.5, round_to=1))
    small, report = compress(net, image, recipe)
    assert small.grouped.groups == 4 and small.grouped.out_channels == small.grouped.in_channels == 12
    assert small.grouped.components == 4 * small.grouped.rank
    assert report.pruning.largest_error < 1e-5 and report.status == "full"
    loaded = load(save(tmp_path / "a", small, report.structure), copy.deepcopy(original))
    assert torch.equal(loaded(image), small(image)) and repr(loaded) == repr(small)
    twice, _ = compress(small, image, Recipe(pruning=Pruning(keep=0.5, round_to=1)))
    assert twice.grouped.groups == 2 and twice.grouped.out_channels == 6


def test_components_that_no_filter_of_a_spatial_svd_uses_go_with_the_filters(image):
    torch.manual_seed(0)
    model = nn.Sequential(SpatialSVDBlock(3, 9, 3, 4, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 1)).eval()
    with torch.no_grad():
        model[0].horizontal[1:, 3] = 0  # filter 0 alone uses the last component
    weight = model[0].weight.detach().clone()
    kept = torch.zeros(9).index_fill(0, torch.tensor([2, 3, 7]), 1.0)
    prune_(model, image, Pruning(keep=0.34, round_to=1), criterion=lambda group: kept)
    assert (model[0].components, model[0].rank, model[0].vertical.shape) == (3, 3, (3, 3, 3))
    torch.testing.assert_close(model[0].weight, weight[[2, 3, 7]])

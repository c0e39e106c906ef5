"""Networks of 3-D and of 1-D convolutions: decomposed, pruned, fitted, stored, lowered and exported as those of 2-D."""

import copy
import itertools
import json

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.artifact import load, save
from norton_plugin.blocks import CPD_BLOCKS, ConvBlock, CPDBlock1d, CPDBlock3d
from norton_plugin.cost import count_cost
from norton_plugin.deploy import lower_, prepare
from norton_plugin.errors import ArtifactError
from norton_plugin.insight import inspect_model
from norton_plugin.pipeline import compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe, Scope
from norton_plugin.surgery import apply_structure_, decompose_, from_conv
from norton_plugin.surgery.distances import layer_distance

QUICK = {"restarts": 1, "sweeps": 10}
LEVELS = {
    "filter": Decomposition(rank=1, **QUICK),
    "cluster": Decomposition(level="cluster", clusters=2, share=0.6, **QUICK),
    "layer": Decomposition(level="layer", share=0.6, linear=True, **QUICK),
    "spatial": Decomposition(level="spatial", share=0.6, **QUICK),
    "auto": Decomposition(level="auto", clusters=2, share=0.6, **QUICK),
}
LAYERS = {1: nn.Conv1d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}
POOLS = {1: nn.MaxPool1d, 3: nn.MaxPool3d}


class UNet(nn.Module):
    """A residual block in groups, a pooled stage, a transposed convolution, a skip connection and a 1x1x1 kernel."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv, norm = LAYERS[axes], NORMS[axes]
        self.stem = nn.Sequential(conv(2, 16, 3, padding=1, bias=False), norm(16), nn.ReLU())
        self.grouped = nn.Sequential(conv(16, 16, 3, padding=1, groups=2), norm(16), nn.ReLU())
        self.down = nn.Sequential(POOLS[axes](2), conv(16, 24, 3, padding=1, bias=False), norm(24), nn.ReLU())
        self.strided = nn.Sequential(conv(24, 32, (3, 1, 3)[:axes], 2, 1, padding_mode="replicate"), nn.ReLU())
        self.up = TRANSPOSED[axes](24, 16, 2, 2)
        self.mix = nn.Sequential(conv(32, 20, 3, padding="same", dilation=2, bias=False), norm(20), nn.ReLU())
        self.narrow = conv(20, 12, 1)
        self.last, self.side = conv(12, 3, 3, padding=1), nn.Linear(32, 4)
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, norm):
                module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.stem(x)
        skip = skip + self.grouped(skip)
        deep = self.down(skip)
        joined = self.mix(torch.cat([self.up(deep), skip], 1))
        return self.last(torch.relu(self.narrow(joined))), self.side(self.strided(deep).flatten(2).mean(2))


@pytest.fixture(params=[1, 3])
def axes(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def net(axes: int) -> nn.Module:
    torch.manual_seed(0)
    return UNet(axes).eval()


@pytest.fixture
def image(axes: int) -> Tensor:
    return torch.randn(2, 2, *(8, 12, 16)[-axes:], generator=torch.Generator().manual_seed(1))


def blocks(model: nn.Module) -> dict[str, ConvBlock]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ConvBlock)}


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max()))


@pytest.mark.parametrize("level", LEVELS)
def test_compressed_stored_and_lowered(net, image, axes, level, tmp_path):
    recipe = Recipe(decomposition=LEVELS[level], pruning=Pruning(keep=0.5, round_to=1))
    result = compress(net, image, recipe)
    small, report = result.model, result.report
    found = blocks(small)
    assert len(found) >= 4 and all(type(block) is CPD_BLOCKS[axes] for block in found.values())
    wanted = {"filter": {"filter"}, "cluster": {"cluster"}}.get(level, {"filter", "cluster", "layer"})
    assert {block.level for block in found.values()} <= wanted
    assert all(layer.error < 1e-5 for layer in report.decomposition.layers)
    assert report.status == "full" and all(group.error < 1e-4 for group in report.pruning.groups)
    assert all(2 * group.after == group.before for group in report.pruning.groups)
    assert report.macs_after < 0.5 * report.macs_before
    assert report.macs_after == count_cost(small, lambda: small(image)).macs
    expected = small(image)
    assert (expected[0] - net(image)[0]).abs().max() > 1e-3
    loaded = load(save(tmp_path / "a", small, report.structure), copy.deepcopy(net))
    assert repr(loaded) == repr(small) and all(map(torch.equal, loaded(image), expected))
    lowered = copy.deepcopy(small)
    lower_(lowered)
    assert not blocks(lowered)
    close(lowered(image), expected)


def test_kept_channels_compute_what_the_dense_model_computes_with_the_others_masked(net, image):
    """By hand: what a removed channel of the stem would carry is set to zero in the decomposed, unpruned model."""
    recipe = {"decomposition": Decomposition(rank=1, **QUICK)}
    whole = compress(net, image, Recipe(**recipe)).model
    result = compress(net, image, Recipe(**recipe, pruning=Pruning(keeps={"narrow": 0.5}, keep=1.0, round_to=1)))
    (group,) = [group for group in result.report.pruning.groups if group.root == "narrow"]
    small = result.model
    rows = [
        next(n for n, own in enumerate(whole.narrow.weight) if torch.equal(own, kept)) for kept in small.narrow.weight
    ]
    assert len(rows) == group.after == 6
    masked = copy.deepcopy(whole)
    gone = [n for n in range(12) if n not in rows]
    masked.narrow.weight.data[gone] = 0
    masked.narrow.bias.data[gone] = 0
    close(small(image), masked(image))


def test_norms_are_folded_and_forms_chosen(net, image):
    small = compress(net, image, Recipe(decomposition=LEVELS["filter"])).model
    prepared = prepare(small, image)
    assert len(prepared.folded) == 4 and not prepared.left
    assert {type(module) for module in prepared.model.modules()} & set(NORMS.values()) == set()
    close(prepared.model(image), small(image))


def test_fitting_to_images_lowers_the_error_of_the_outputs(net, image):
    generator = torch.Generator().manual_seed(2)
    images = [torch.randn(8, *image.shape[1:], generator=generator) for _ in range(2)]
    settings = {
        "decomposition": Decomposition(level="layer", share=0.4, **QUICK),
        "pruning": Pruning(keep=0.8, round_to=1),
    }
    errors = {}
    for fit in (False, True):
        recipe = Recipe.from_dict({**Recipe(**settings).to_dict(), "calibration": {"fit": fit}})
        result = compress(net, image, recipe, calibration=images)
        pairs = zip(result.model(image), net(image), strict=True)
        errors[fit] = sum(float((small - dense).square().sum() / dense.square().sum()) for small, dense in pairs)
    assert errors[True] < 0.7 * errors[False]


def test_a_budget_finds_sizes(net, image):
    recipe = Recipe.from_dict({"decomposition": {"level": "auto", **QUICK}, "budget": {"macs": 0.5}})
    report = compress(net, image, recipe).report
    # A block pads before its pointwise step where the padding is not of zeros: a few pixels more than foretold.
    assert report.budget.macs <= 0.5
    assert report.macs_after / report.macs_before == pytest.approx(report.budget.macs, rel=0.03)
    assert {layer.level for layer in report.decomposition.layers} <= {"filter", "layer"}


def test_inspection_says_up_to_which_rank_a_layer_saves(net, image, axes):
    found = {layer.name: layer for layer in inspect_model(net, image).layers}
    assert found["stem.0"].kernel == (3,) * axes and found["stem.0"].eligible
    # C of 16 in 3x3x3: just under 27 * 16 / (16 + 9); in 3: just under 3 * 16 / (16 + 3).
    assert found["down.1"].break_even == {1: 2, 3: 17}[axes]
    assert found["up"].code == "not-a-convolution" and found["up"].break_even is None
    assert found["narrow"].code == "kernel-1x1" and found["narrow"].shared


def test_a_1x1x1_kernel_is_a_truncated_svd(net, axes):
    block = from_conv(net.narrow, level="layer", components=5)
    assert type(block) is CPD_BLOCKS[axes] and block.kernel == () and block.level == "layer"
    dense = net.narrow.weight.detach().flatten(1).double()
    expected = torch.linalg.svdvals(dense)[5:].square().sum().sqrt()
    assert float((block.weight.detach().flatten(1) - dense).norm()) == pytest.approx(float(expected), rel=1e-5)


def test_filters_are_compared_by_every_axis_of_their_kernel():
    torch.manual_seed(0)
    block = CPDBlock3d(16, 10, (3, 3, 5), 2)
    distance = layer_distance(block)
    assert distance.matrix.shape == (10, 10) and not distance.notes
    with torch.no_grad():
        block.depth[1], block.vertical[1], block.horizontal[1] = block.depth[0], block.vertical[0], block.horizontal[0]
        block.head[1] = 3 * block.head[0]
    assert float(layer_distance(block).matrix[0, 1]) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        block.depth[1] = torch.randn(2, 3)
    assert float(layer_distance(block).matrix[0, 1]) > 0.05
    (note,) = layer_distance(CPDBlock3d(16, 10, (2, 3, 5), 2)).notes
    assert note.startswith("depth: 2 components in 2 dimensions")


def structure_of(net, image):
    result = compress(net, image, Recipe(decomposition=LEVELS["filter"], pruning=Pruning(keep=0.5)))
    return json.loads(json.dumps(result.report.structure))


def test_structures_that_no_surgery_wrote_are_refused(net, image, axes):
    """A number for each axis, as many as the convolution has."""
    structure = structure_of(net, image)
    place = next(i for i, entry in enumerate(structure["modules"]) if "down.1" in entry["names"])
    changes = [
        {"kernel_size": [3] * axes, "stride": [1] * (axes + 1 if axes < 3 else 2)},
        {"padding": [1] * (axes % 3 + 1)},
        {name: [value] * 2 for name, value in {"kernel_size": 3, "stride": 1, "dilation": 1, "padding": 1}.items()},
        {name: [3] * 4 for name in ("kernel_size", "stride", "dilation", "padding")},
    ]
    for change in changes:
        edited = copy.deepcopy(structure)
        edited["modules"][place]["block"].update(change)
        edited.pop("hash", None)
        with pytest.raises(ArtifactError):
            apply_structure_(copy.deepcopy(net), edited)
    apply_structure_(copy.deepcopy(net), structure)


def test_every_geometry_becomes_a_block_that_was_compared_with_it(axes):
    torch.manual_seed(0)
    kind = LAYERS[axes]
    geometries = itertools.product((1, 2), ("zeros", "reflect", "circular"), (1, 2), (1, 3))
    convs = [
        kind(6, 12, (2, 3, 3)[:axes], stride, 2, dilation, groups, padding_mode=mode)
        for stride, mode, dilation, groups in geometries
    ]
    net = nn.ModuleList(convs)
    before = [conv.weight.detach().clone() for conv in convs]
    report = decompose_(net, Decomposition(rank=2, allow_more_macs=True, **QUICK), scope=Scope())
    assert len(report.layers) == len(convs) and all(layer.error < 1e-5 for layer in report.layers)
    for block, weight in zip(net, before, strict=True):
        assert isinstance(block, CPDBlock1d | CPDBlock3d) and block.weight.shape == weight.shape

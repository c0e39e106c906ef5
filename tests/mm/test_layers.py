"""Layers of mmcv and mmdet that keep more than weights (docs/traps.md): widths, flags, names of their norms."""

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import mmcv.cnn
from mmcv.cnn import ConvModule
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models.backbones.res2net import Bottle2neck
from mmdet.models.layers import ChannelAttention, SELayer
from mmdet.models.layers.normed_predictor import NormedConv2d
from mmdet.registry import MODELS as DETECTORS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

sys.path.insert(0, str(Path(__file__).parent))
from detectors import faster_rcnn, retinanet

from norton_plugin import Recipe, compress
from norton_plugin.blocks import CPDBlock, SpatialSVDBlock
from norton_plugin.blocks.clusters import slots_of
from norton_plugin.deploy.lowering import lower_
from norton_plugin.mm import compressed_model
from norton_plugin.mm.patches import fuse
from norton_plugin.mm.run.preconditions import _has_efficient_conv_bn_eval
from norton_plugin.surgery.structure import apply_structure_
from norton_plugin.zoo.detector_parts import trace_of

pytestmark = pytest.mark.mm
RECIPE = Recipe.from_dict(
    {"decomposition": {"rank": 2, "restarts": 1, "sweeps": 5}, "pruning": {"keep": 0.5, "round_to": 1}}
)
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(config):
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return DETECTORS.build(ConfigDict(config)).eval()


def compressed(config):
    """A detector, its compressed form, the structure, and the way it was run."""
    dense = build(config)
    trace, _ = trace_of(dense, IMAGE)
    small, report = compress(dense, IMAGE, RECIPE, forward_fn=trace)
    assert report.status == "full" and report.largest_error < 1e-4  # against the masked dense one
    return dense, small, report.structure, trace


def flat(output):
    return [output] if isinstance(output, torch.Tensor) else [leaf for each in output for leaf in flat(each)]


@pytest.fixture(scope="module")
def faster():
    return compressed(faster_rcnn())


def test_norms_behind_properties_follow_their_convolutions(faster):
    """T18: ``norm1`` is a property that looks ``bn1`` up by its name."""
    backbone, pruned = faster[1].backbone, 0
    assert backbone.norm1 is backbone.bn1 and backbone.norm1.num_features == backbone.conv1.out_channels
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for block in stage:
            assert block.norm1 is block.bn1 and block.norm2 is block.bn2
            assert block.norm1.num_features == block.conv1.out_channels
            assert block.norm2.num_features == block.conv2.out_channels
            pruned += block.norm1.num_features < 8
    assert pruned


def test_initial_weights_of_a_built_model_leave_blocks_alone(faster):
    """T11: a runner initialises what it built, here with rules for all convolutions of backbone, neck and heads."""
    _, small, structure, _ = faster
    with DefaultScope.overwrite_default_scope("mmdet"):
        config = faster_rcnn()
        kind = config.pop("type")
        model = compressed_model({"type": kind, "structure": structure}, **ConfigDict(config))
    model.load_state_dict(small.state_dict())
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, CPDBlock)}
    before = {name: copy.deepcopy(block.state_dict()) for name, block in blocks.items()}
    model.init_weights()
    assert "neck.fpn_convs.0.conv" in blocks
    for name, block in blocks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in block.state_dict().items()), name
    lateral = "neck.lateral_convs.0.conv.weight"
    assert not torch.equal(model.state_dict()[lateral], small.state_dict()[lateral])  # the rules did run


@pytest.mark.parametrize("form", ["separable", "grouped", "depthwise", "dense"])
def test_an_image_without_regions(form):
    """Heads behind the pooling are run on no regions at all."""
    block = CPDBlock(4, 6, 3, 2, padding=1, form=form).eval()  # in training mode another form runs
    regions = torch.randn(2, 4, 7, 7)
    expected = nn.functional.conv2d(regions, block.weight, block.bias, padding=1)
    torch.testing.assert_close(block(regions), expected, rtol=1e-4, atol=1e-5)
    output = block(regions[:0])
    assert output.shape == (0, 6, 7, 7)
    output.sum().backward()
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


def test_any_number_of_regions_in_a_compressed_detector():
    """Every region is scored as if it were alone; none gives neither scores nor gradients."""
    _, small, _, _ = compressed(faster_rcnn(mask=True))
    head, levels = small.roi_head, small.extract_feat(IMAGE)
    assert isinstance(head.mask_head.convs[0].conv, CPDBlock)

    def outputs(regions):
        boxes = head._bbox_forward(levels, regions)
        return boxes["cls_score"], boxes["bbox_pred"], head._mask_forward(levels, regions)["mask_preds"]

    regions = torch.tensor([[0.0, 0, 0, 31, 31], [0, 8, 4, 60, 63], [0, 0, 0, 63, 63]])
    together, alone = outputs(regions), [outputs(region[None]) for region in regions]
    for found, rows, shape in zip(together, zip(*alone, strict=True), [(3,), (8,), (2, 28, 28)], strict=True):
        expected = torch.cat(rows)
        assert expected.shape == (3, *shape) and (expected[0] - expected[1]).abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    none = outputs(torch.zeros(0, 5))
    assert [each.shape for each in none] == [(0, 3), (0, 8), (0, 2, 28, 28)]
    sum(each.sum() for each in none).backward()
    for part in (head.bbox_head, head.mask_head):
        gradients = [parameter.grad for parameter in part.parameters()]
        assert gradients and not any(bool(gradient.any()) for gradient in gradients)


class Split(nn.Module):
    """Stages whose layers keep widths of their own."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.stem = ConvModule(3, 32, 3, padding=1, norm_cfg={"type": "BN"})
        if kind == "res2net":
            self.layer = Bottle2neck(32, 8, scales=4, base_width=32, base_channels=8)
        else:
            attention = SELayer(32, ratio=4) if kind == "se" else ChannelAttention(32)
            self.layer = nn.Sequential(ConvModule(32, 32, 3, padding=1, norm_cfg={"type": "BN"}), attention)
        self.head = nn.Conv2d(32, 5, 3, padding=1)

    def forward(self, x):
        return self.head(self.layer(self.stem(x)))


@pytest.mark.parametrize("kind", ["res2net", "se", "channel attention"])
def test_stages_with_widths_of_their_own(kind):
    """T14: Res2Net splits by a width it was told; attention multiplies channels by weights of their number."""
    dense = Split(kind).eval()
    small, report = compress(dense, IMAGE, RECIPE)
    assert report.largest_error < 1e-5  # against the masked dense one
    names = {name for layer in report.decomposition.layers for name in layer.names}
    assert names >= {"stem.conv", "head"}
    assert small.stem.conv.out_channels < 32 and small.stem.out_channels == small.stem.conv.out_channels
    rebuilt = copy.deepcopy(dense)
    apply_structure_(rebuilt, report.structure)
    rebuilt.load_state_dict(small.state_dict())
    other = torch.randn(2, 3, 40, 24)
    assert small(other).shape == (2, 5, 40, 24) and torch.equal(small(other), rebuilt(other))
    if kind == "res2net":
        for layer in (small.layer, rebuilt.layer):
            assert layer.width == 16 and layer.conv1.out_channels == 64 == layer.conv3.in_channels
            assert [conv.in_channels for conv in layer.convs] == [16, 16, 16]
    else:
        last = small.layer[1].conv2.conv if kind == "se" else small.layer[1].fc
        assert last.out_channels == small.layer[0].out_channels == 16


class Special(nn.Module):
    """A convolution of another kind between plain ones."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = kind(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)).relu())


@pytest.mark.parametrize("kind", [NormedConv2d, DeformConv2dPack, ModulatedDeformConv2dPack])
def test_convolutions_that_compute_in_their_own_way_are_left(kind):
    """T13: their weight is not what a plain convolution would take, and not all let channels be followed."""
    small, report = compress(Special(kind).eval(), IMAGE, RECIPE)
    assert type(small.middle) is kind and isinstance(small.first, CPDBlock) and isinstance(small.last, CPDBlock)
    assert not any("middle" in layer.names for layer in report.decomposition.layers)
    reasons = {each.name: each.code for each in (*report.decomposition.skipped, *report.pruning.skipped)}
    if kind is NormedConv2d:
        assert reasons["middle"] == "own-forward"
        assert small.first.out_channels == small.middle.in_channels == small.middle.weight.shape[1] == 8
        assert max(group.error for group in report.pruning.groups) < 1e-5  # against the masked dense one
    else:
        # mmcv binds these operators past PyTorch: nothing sees them read the map, and the proof rolls the cut back.
        assert reasons["first"] == "breaks" and small.first.out_channels == 16
        rebuilt = Special(kind).eval()
        rebuilt.first.weight.data.copy_(small.first.weight)
        rebuilt.last.weight.data.copy_(small.last.weight)
        torch.testing.assert_close(small(IMAGE), rebuilt(IMAGE), rtol=1e-4, atol=1e-5)


def stage(norm):
    """A dense convolution without a norm, a block, and the block's norm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), CPDBlock(4, 4, 3, 2, padding=1, bias=False), norm(4)).eval()
    net[2].running_mean.normal_()
    net[2].running_var.uniform_(0.5, 2.0)
    return net


NORMS = {
    "plain": nn.BatchNorm2d,
    "without affine": lambda width: nn.BatchNorm2d(width, affine=False),
    "synchronised": nn.SyncBatchNorm,
    "reverted": lambda width: revert_sync_batchnorm(nn.SyncBatchNorm(width)),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("lowered", [False, True])
def test_norms_fold_into_blocks_and_what_they_were_lowered_to(norm, lowered):
    """T12, T17."""
    net, x = stage(nn.BatchNorm2d), torch.randn(2, 3, 6, 6)
    expected = net(x)
    net[2] = NORMS[norm](4).eval()
    net[2].load_state_dict(stage(nn.BatchNorm2d)[2].state_dict(), strict=False)
    if lowered:
        lower_(net)
    fuse.install()
    fused = mmcv.cnn.fuse_conv_bn(net)
    assert isinstance(fused[2], nn.Identity) and torch.allclose(fused(x), expected, atol=1e-5)


def shared_block(kernel_size=3, **options):
    """Seven filters in three clusters of unequal size, in no order; an empty place in two of them."""
    block = CPDBlock(4, 7, kernel_size, 2, clusters=3, cluster_size=4, padding=kernel_size // 2, **options)
    block.slot, _ = slots_of(torch.tensor([2, 0, 1, 1, 0, 1, 1]), 3, size=4)
    return block


LEVELS = {
    "filter": lambda **options: CPDBlock(4, 7, 3, 2, padding=1, **options),
    "cluster": shared_block,
    "cluster, 1x1": lambda **options: shared_block(1, **options),
    "cluster, groups": lambda **options: CPDBlock(4, 6, 3, 2, clusters=4, padding=1, groups=2, **options),
    "layer": lambda **options: CPDBlock(4, 7, 3, 5, clusters=1, padding=1, **options),
    "layer, 1x1": lambda **options: CPDBlock(4, 7, 1, 3, clusters=1, **options),
    "layer, groups": lambda **options: CPDBlock(4, 6, 3, 2, clusters=2, padding=1, groups=2, **options),
    "layer, padded": lambda **options: CPDBlock(4, 7, 3, 5, clusters=1, padding=1, padding_mode="reflect", **options),
    "spatial": lambda **options: SpatialSVDBlock(4, 7, 3, 5, padding=1, **options),
    "spatial, groups": lambda **options: SpatialSVDBlock(4, 6, 3, 2, padding=1, groups=2, **options),
}


@pytest.mark.parametrize("form", ["separable", "grouped", "depthwise", "dense"])
@pytest.mark.parametrize("level", LEVELS)
def test_norms_fold_at_every_level_and_in_every_form(level, form):
    """T17: row n of the mix belongs to filter n, the heads to all filters; lowered, filters may be in another order."""
    if level.startswith("spatial") and form not in SpatialSVDBlock.forms:
        pytest.skip("a spatial SVD has no such form")
    torch.manual_seed(0)
    block = LEVELS[level](form=form, bias=form in ("separable", "dense"))
    norm = nn.BatchNorm2d(block.out_channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), block, norm).double().eval(), torch.randn(2, 3, 6, 6).double()
    expected, fused = net(x), copy.deepcopy(net)
    assert fuse.fold_norms_(fused) == 1 and isinstance(fused[2], nn.Identity)
    torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-12)
    gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
    torch.testing.assert_close(fused[1].weight, block.weight * gain[:, None, None, None], rtol=1e-10, atol=1e-12)
    lower_(net)
    assert fuse.fold_norms_(net) == 1
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", ["filter", "cluster", "layer"])
def test_folded_norms_of_any_size_survive_half_precision(level):
    """Gains land in one factor, which had the same norm as the others: there is room for them."""
    torch.manual_seed(0)
    block = LEVELS[level](bias=False)
    block.set_factors(block.factors.balanced())
    norm = nn.BatchNorm2d(7).eval()
    norm.running_var.copy_(torch.logspace(-6, 6, 7))
    net, x = nn.Sequential(block, norm).eval(), torch.randn(2, 4, 6, 6)
    expected = net(x)
    assert fuse.fold_norms_(net) == 1
    found = net.half()(x.half()).float()
    scale = expected.abs().amax((0, 2, 3), keepdim=True)
    assert ((found - expected) / scale).abs().max() < 5e-3


def test_norms_of_shared_blocks_stay_out_of_other_convolutions():
    """T15, T17: such a norm cannot be folded, and must not end up in the convolution listed before."""
    first, x, y = stage(nn.BatchNorm2d), torch.randn(2, 3, 6, 6), torch.randn(2, 4, 6, 6)
    second = nn.Sequential(first[1], nn.BatchNorm2d(4)).eval()
    second[1].running_mean.normal_()
    nets = nn.ModuleList([first, second, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()])
    expected = nets[0](x), nets[1](y), nets[2](x)
    fuse.install()
    mmcv.cnn.fuse_conv_bn(nets)
    assert torch.equal(nets[0](x), expected[0]) and torch.equal(nets[1](y), expected[1])
    assert torch.allclose(nets[2](x), expected[2], atol=1e-6)
    assert [type(net[-1]) for net in nets] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.Identity]


def test_modules_that_imported_the_function_before_get_the_new_one(monkeypatch):
    """T17: mmdet's benchmark imports mmcv's function by its name."""
    home = importlib.import_module("mmcv.cnn.utils.fuse_conv_bn")
    plain = getattr(home.fuse_conv_bn, "__wrapped__", home.fuse_conv_bn)
    benchmark = ModuleType("benchmark")
    benchmark.fuse_conv_bn = plain
    monkeypatch.setitem(sys.modules, "benchmark_of_this_test", benchmark)
    for holder in (home, mmcv.cnn, mmcv.cnn.utils):
        monkeypatch.setattr(holder, "fuse_conv_bn", plain)
    fuse.install()
    assert benchmark.fuse_conv_bn is mmcv.cnn.fuse_conv_bn is not plain
    net, x = stage(nn.BatchNorm2d), torch.randn(1, 3, 6, 6)
    expected = net(x)
    assert torch.allclose(benchmark.fuse_conv_bn(net)(x), expected, atol=1e-5)


def test_a_dense_model_is_folded_as_mmcv_does():
    fuse.install()
    one, other = build(retinanet()), build(retinanet())
    mmcv.cnn.fuse_conv_bn(one)
    plain = mmcv.cnn.fuse_conv_bn.__wrapped__
    plain(other)
    assert [type(m) for m in one.modules()] == [type(m) for m in other.modules()]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_option_of_a_single_conv_module_is_seen():
    """T9: mmcv's own ``efficient_conv_bn_eval``, which the runner's config does not name."""
    options = {"norm_cfg": {"type": "BN"}}
    assert not _has_efficient_conv_bn_eval(nn.Sequential(ConvModule(3, 4, 1, **options)))
    assert _has_efficient_conv_bn_eval(nn.Sequential(ConvModule(3, 4, 1, efficient_conv_bn_eval=True, **options)))

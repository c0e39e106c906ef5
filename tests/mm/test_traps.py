"""Traps of mmengine, mmcv and mmdet that a compressed model could fall into (docs/traps.md)."""

import copy
import random
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import mmengine._strategy as strategies
from mmcv.cnn import ConvModule
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import MODELS as DETECTORS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, OPTIM_WRAPPERS, DefaultScope

sys.path.insert(0, str(Path(__file__).parent))
from detectors import faster_rcnn, retinanet
from toy import ToyData, difference, run

from norton_plugin import Recipe, compress
from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import RecipeError
from norton_plugin.mm.patches import fuse
from norton_plugin.mm.runner.migration import check_wrapper
from norton_plugin.surgery.structure import apply_structure_
from norton_plugin.zoo.detector_parts import trace_of

pytestmark = pytest.mark.mm
RECIPE = Recipe.from_dict(
    {"decomposition": {"rank": 2, "restarts": 1, "sweeps": 5}, "pruning": {"keep": 0.5, "round_to": 4}}
)


@pytest.fixture(scope="module", params=[retinanet, faster_rcnn])
def compressed(request):
    """A detector whose norms are not trivial, and its compressed form."""
    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        dense = DETECTORS.build(ConfigDict(request.param())).eval()
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.3)
    image = torch.randn(1, 3, 64, 64)
    trace, _ = trace_of(dense, image)
    small, report = compress(dense, image, RECIPE, forward_fn=trace)
    assert report.decomposition.layers and report.pruning.groups
    rebuilt = copy.deepcopy(dense)
    apply_structure_(rebuilt, report.structure)
    return small, trace, image, rebuilt


def test_copies_of_a_convolutions_attributes_are_true(compressed):
    """T13: ConvModule tells tools its widths from copies that it made in its constructor."""
    changed = 0
    for module in (*compressed[0].modules(), *compressed[3].modules()):
        if isinstance(module, ConvModule):
            for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"):
                assert getattr(module, name) == getattr(module.conv, name), name
            changed += isinstance(module.conv, CPDBlock)
        if isinstance(module, CPDBlock):
            assert module.weight.shape == (
                module.out_channels,
                module.in_channels // module.groups,
                *module.kernel_size,
            )
            assert module.transposed is False and module.output_padding == (0, 0)
    assert changed


def test_the_roi_pooling_is_as_wide_as_the_pyramid(compressed):
    """T14: the extractor allocates its output by a width that it was told, which follows the channels that went."""
    model = compressed[0]
    if not hasattr(model, "roi_head"):
        pytest.skip("has no RoI pooling")
    extractor = model.roi_head.bbox_roi_extractor
    pyramid = model.extract_feat(compressed[2])
    assert {level.shape[1] for level in pyramid} == {extractor.out_channels} == {8}
    regions = torch.tensor([[0.0, 4, 4, 40, 40], [0.0, 0, 0, 20, 60]])
    pooled = extractor(pyramid[: extractor.num_inputs], regions)
    assert pooled.shape == (2, extractor.out_channels, 7, 7)
    # What lies behind it was pruned nevertheless.
    assert model.roi_head.bbox_head.shared_fcs[0].out_features == 16


def test_folding_batch_norms_does_not_change_a_compressed_detector(compressed):
    """T17, by mmcv's own function."""
    model, trace, image, _ = compressed
    fuse.install()
    fused = sys.modules["mmcv.cnn"].fuse_conv_bn(copy.deepcopy(model))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 0
    with torch.no_grad():
        for one, other in zip(_flat(trace(model, image)), _flat(trace(fused, image)), strict=True):
            assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()))


def _flat(output):
    return [output] if isinstance(output, torch.Tensor) else [leaf for each in output for leaf in _flat(each)]


def stage(shared=False):
    """A dense convolution, a block, and the block's norm: mmcv alone would fold it into the convolution."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), CPDBlock(4, 4, 3, 2, padding=1, bias=False), nn.BatchNorm2d(4)).eval()
    net[2].running_mean.normal_()
    net[2].running_var.uniform_(0.5, 2.0)
    if not shared:
        return net
    second = nn.Sequential(net[1], nn.BatchNorm2d(4)).eval()
    second[1].running_mean.normal_()
    return nn.ModuleList([net, second])


def test_a_norm_behind_a_block_is_folded_into_the_block():
    """T17."""
    x = torch.randn(1, 3, 6, 6)
    net = stage()
    expected = net(x)
    wrong = fuse_conv_bn.__wrapped__ if hasattr(fuse_conv_bn, "__wrapped__") else fuse_conv_bn
    broken = wrong(stage())
    assert not torch.allclose(broken(x), expected, atol=1e-2)  # what happens without the step in front
    fuse.install()
    fuse.install()
    fused = sys.modules["mmcv.cnn"].fuse_conv_bn(net)
    assert isinstance(fused[2], nn.Identity) and torch.allclose(fused(x), expected, atol=1e-5)


def test_a_block_with_several_norms_keeps_them():
    """T17, T15: heads that share convolutions, but not their norms."""
    nets = stage(shared=True)
    x, y = torch.randn(1, 3, 6, 6), torch.randn(1, 4, 6, 6)
    expected = nets[0](x), nets[1](y)
    assert fuse.fold_norms_(nets) == 0
    assert torch.equal(nets[0](x), expected[0]) and torch.equal(nets[1](y), expected[1])


@pytest.mark.parametrize("name", ["DeepSpeedStrategy", "FSDPStrategy", "ColossalAIStrategy"])
def test_strategies_that_own_the_parameters_are_refused(name):
    """T24."""
    strategy = object.__new__(getattr(strategies, name))
    with pytest.raises(RecipeError, match=f"{name}, which owns the parameters.*norton compress"):
        check_wrapper(SimpleNamespace(strategy=strategy, model=nn.Linear(1, 1)))


@OPTIM_WRAPPERS.register_module(force=True)
class HalfPrecisionWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper as it is on an accelerator; that one refuses to be built without one."""

    def optim_context(self, model):
        @contextmanager
        def context():
            with super(HalfPrecisionWrapper, self).optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
                yield

        return context()


@pytest.mark.parametrize(
    "norton",
    [{}, {"distill": {"layers": "shared", "weight": 0.01}}, {"level": "layer"}],
    ids=["plain", "distilled", "shared components"],
)
def test_mixed_precision(tmp_path, norton):
    """Blocks compute in half precision, their factors stay in single precision, and a resumed run is exact."""
    dtypes = set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: (
            dtypes.add((module.training, output.dtype)) if isinstance(module, CPDBlock) else None
        )
    )
    wrapper = {"type": "HalfPrecisionWrapper", "optimizer": {"type": "SGD", "lr": 0.05}}
    options = {"optim_wrapper": wrapper, "norton": norton}
    try:
        whole = run(tmp_path / "whole", epochs=2, **options)
    finally:
        handle.remove()
    assert (True, torch.bfloat16) in dtypes
    assert all(p.dtype == torch.float32 for p in whole.model.parameters())
    resumed = run(
        tmp_path / "resumed", epochs=2, load_from=str(tmp_path / "whole" / "epoch_1.pth"), resume=True, **options
    )
    assert difference(whole, resumed) == 0.0


def test_gradient_accumulation_resumes_exactly(tmp_path):
    wrapper = {
        "type": "OptimWrapper",
        "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
        "accumulative_counts": 2,
    }
    whole = run(tmp_path / "whole", epochs=3, optim_wrapper=wrapper)
    single = run(tmp_path / "single", epochs=3, optim_wrapper={**wrapper, "accumulative_counts": 1})
    assert difference(whole, single) > 1e-4
    resumed = run(
        tmp_path / "resumed",
        epochs=3,
        optim_wrapper=wrapper,
        load_from=str(tmp_path / "whole/epoch_2.pth"),
        resume=True,
    )
    assert difference(whole, resumed) == 0.0


@DATASETS.register_module(force=True)
class ToyNoise(ToyData):
    """Augmentation that draws from every generator a data set may use."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return {**item, "inputs": item["inputs"] * (0.5 + noise)}


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_resumed_run_draw_the_same_augmentations(tmp_path, persistent):
    def loader(workers):
        return {
            "batch_size": 4,
            "num_workers": workers,
            "persistent_workers": persistent and workers > 0,
            "collate_fn": {"type": "default_collate"},
            "dataset": {"type": "ToyNoise"},
            "sampler": {"type": "DefaultSampler", "shuffle": True},
        }

    whole = run(tmp_path / "whole", epochs=3, train_dataloader=loader(2))
    options = {"load_from": str(tmp_path / "whole" / "epoch_2.pth"), "resume": True}
    resumed = run(tmp_path / "resumed", epochs=3, train_dataloader=loader(2), **options)
    assert difference(whole, resumed) == 0.0
    if not persistent:
        return
    # The test can fail: without the seeds of each step, workers that live on draw what no checkpoint knows.
    unseeded = {"norton": {"step_seeds": False}, "train_dataloader": loader(2), "epochs": 3}
    first = run(tmp_path / "unseeded", **unseeded)
    options["load_from"] = str(tmp_path / "unseeded" / "epoch_2.pth")
    assert difference(first, run(tmp_path / "unseeded resumed", **unseeded, **options)) > 0

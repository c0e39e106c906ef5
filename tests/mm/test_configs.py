"""The config files that this project ships: they inherit what they say, and build."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import mmdet
import torch
from mmdet.registry import MODELS as DETECTORS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, MODELS, DefaultScope

from norton_plugin import compress
from norton_plugin.mm import NortonHook, TimmClassifier
from norton_plugin.zoo import load_source

pytestmark = pytest.mark.mm
ROOT = Path(__file__).parents[2] / "configs"
# Folder by folder, so that a new file is tested without being listed.
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/*.py"))
COMPRESSING = [name for name in CONFIGS if name.endswith("_norton.py")]


def test_the_configs_of_the_issue_are_there():
    assert {name.split("/")[1].split("_")[0] for name in COMPRESSING if name.startswith("mmdet/")} == {
        "faster-rcnn",
        "mask-rcnn",
        "retinanet",
        "rtmdet",
        "yolox",
    }


@pytest.mark.parametrize("name", COMPRESSING)
def test_hook_and_checkpoint(name):
    """The hook stands beside the base's hooks, and accepts its options; the dense weights come in."""
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) <= 25
    config = Config.fromfile(ROOT / name)
    hook = HOOKS.build(config.default_hooks.norton)
    assert isinstance(hook, NortonHook) and hook.recipe.decomposition.active and hook.recipe.pruning.active
    assert "checkpoint" in config.default_hooks
    if not name.startswith("timm/"):
        assert config.load_from


@pytest.mark.parametrize("name", [name for name in COMPRESSING if name.startswith("mmdet/")])
def test_fine_tuning_is_gentler_than_training(name):
    config = Config.fromfile(ROOT / name)
    inherited = re.search(r'_base_ = "mmdet::(.+)"', (ROOT / name).read_text()).group(1)
    base = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / inherited)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(base.optim_wrapper.optimizer.lr / 10)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("bccd/")])
def test_the_blood_cell_detector_is_the_same_one_throughout(name):
    register_all_modules(init_default_scope=False)
    config = Config.fromfile(ROOT / name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = DETECTORS.build(config.model)
    assert sum(p.numel() for p in detector.parameters()) == 1_765_671


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("timm/")])
def test_classifiers_build(name):
    config = Config.fromfile(ROOT / name)
    model = ConfigDict(config.model)
    model.model.update(pretrained=False)
    classifier = MODELS.build(model)
    assert isinstance(classifier, TimmClassifier)
    assert classifier(torch.zeros(1, 3, 64, 64), mode="tensor").shape[0] == 1


@pytest.mark.slow
def test_the_recipe_of_a_config_reaches_the_size_it_is_for():
    """RTMDet-tiny, whose heads share convolutions: every share is kept to, and the result is proved right."""
    name = "mmdet/rtmdet_tiny_norton.py"
    config = Config.fromfile(ROOT / name)
    torch.manual_seed(0)
    loaded = load_source("mmdet:rtmdet/rtmdet_tiny_8xb32-300e_coco", input_size=128)
    recipe = HOOKS.build(config.default_hooks.norton).recipe
    _, report = compress(loaded.model.eval(), loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
    assert report.status == "full" and report.largest_error < 1e-4
    assert report.macs_after < 0.75 * report.macs_before
    assert min(group.after / group.before for group in report.pruning.groups) >= 0.65

"""The config files that this project ships: they inherit what they say, and build."""

import copy
import re
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import mmdet
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS as DETECTORS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from norton_plugin import compress
from norton_plugin.mm import NortonHook, TimmClassifier
from norton_plugin.mm.runner.quiet import preserved_process
from norton_plugin.zoo import load_source
from norton_plugin.zoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.mm
ROOT = Path(__file__).parents[2] / "configs"
# Folder by folder, so that a new file is tested without being listed.
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("[a-z]*/*.py"))
COMPRESSING = [name for name in CONFIGS if name.endswith("_norton.py")]
# Rank, share of channels kept, input size where given, multiple that widths are rounded to.
RECIPES = {
    "bccd/retinanet_r18-thin_bccd_norton.py": (5, 0.8, (), 4),
    "mmdet/faster-rcnn_r50_fpn_norton.py": (3, 0.7, (), 8),
    "mmdet/mask-rcnn_r50_fpn_norton.py": (3, 0.7, (), 8),
    "mmdet/retinanet_r50_fpn_norton.py": (3, 0.7, (), 8),
    "mmdet/rtmdet_tiny_norton.py": (3, 0.75, (640, 640), 8),
    "mmdet/yolox_tiny_norton.py": (3, 0.75, (416, 416), 8),
    "timm/resnet18_norton.py": (3, 0.7, (), 8),
    "timm/resnet50-layer_norton.py": (None, 1.0, (), 8),
    "timm/resnet50_norton.py": (3, 0.7, (), 8),
}
# Level and share of the MACs, where filters share components.
LEVELS = {"timm/resnet50-layer_norton.py": ("layer", 0.5)}


def test_the_configs_of_the_issue_are_there():
    assert {name.split("/")[1].split("_")[0] for name in COMPRESSING if name.startswith("mmdet/")} == {
        "faster-rcnn",
        "mask-rcnn",
        "retinanet",
        "rtmdet",
        "yolox",
    }


def base_of(name):
    """The config that a config says it inherits, of mmdet or beside it."""
    inherited = re.search(r'_base_ = "(.+)"', (ROOT / name).read_text()).group(1)
    if inherited.startswith("mmdet::"):
        return Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / inherited.removeprefix("mmdet::"))
    return Config.fromfile((ROOT / name).parent / inherited)


def plain(value):
    """What a config says, without the scope that mmengine notes in everything it inherits from another package."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key != "_scope_"}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", COMPRESSING)
def test_a_config_adds_the_hook_and_changes_little_else(name):
    """The hook stands beside the base's hooks, and accepts its options; the dense weights come in."""
    assert len((ROOT / name).read_text().splitlines()) <= 25
    config, base = Config.fromfile(ROOT / name), base_of(name)
    given = dict(config.default_hooks.norton)
    hook = HOOKS.build(config.default_hooks.norton)
    recipe = hook.recipe
    assert isinstance(hook, NortonHook)
    given = (given.get("rank"), given.get("keep", 1.0))
    assert (recipe.decomposition.rank, recipe.pruning.keep) == given == RECIPES[name][:2]
    assert (recipe.decomposition.level, recipe.decomposition.share) == LEVELS.get(name, ("filter", None))
    assert (tuple(hook.input_size or ()), recipe.pruning.round_to) == RECIPES[name][2:]
    hooks = {key: each for key, each in plain(config.default_hooks).items() if key != "norton"}
    assert hooks == plain(base.default_hooks) and "checkpoint" in hooks
    for key in ("train_cfg", "train_pipeline", "test_evaluator", "param_scheduler"):
        assert plain(config.get(key)) == plain(base.get(key)), key
    if not name.startswith("timm/"):
        assert config.load_from.endswith(".pth")


@pytest.mark.parametrize("name", [name for name in COMPRESSING if name.startswith("mmdet/")])
def test_fine_tuning_is_gentler_than_training(name):
    config, base = Config.fromfile(ROOT / name), base_of(name)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(base.optim_wrapper.optimizer.lr / 10)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("bccd/")])
def test_the_blood_cell_detector_is_the_same_one_throughout(name):
    register_all_modules(init_default_scope=False)
    config = Config.fromfile(ROOT / name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = DETECTORS.build(config.model)
    assert sum(p.numel() for p in detector.parameters()) == 1_765_671


class FirstStep(Hook):
    """Keeps what the first step saw: the batch, the parameters before and after it, and the learning rate."""

    priority = "VERY_LOW"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batch, self.rate = data_batch, runner.optim_wrapper.get_lr()["lr"]
        self.before = {name: p.detach().clone() for name, p in runner.model.model.named_parameters()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after = {name: p.detach().clone() for name, p in runner.model.model.named_parameters()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if "resnet18" in name else [pytest.mark.slow])
        for name in CONFIGS
        if name.startswith("timm/") and name not in LEVELS  # those train with AdamW
    ],
)
def test_classifiers_are_compressed_and_take_a_step_as_by_hand(name, tmp_path):
    """Parameters are those of `compress`; one step changes exactly the trainable ones, by SGD's own formula."""
    for label, colour in enumerate(("red", "green")):
        (tmp_path / "data" / colour).mkdir(parents=True)
        Image.new("RGB", (40, 40), colour).save(tmp_path / "data" / colour / f"{label}.png")
    config = Config.fromfile(ROOT / name)
    small = {"input_size": (3, 32, 32)}
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(root=str(tmp_path / "data"), preprocessing=small)
    config.model.model.num_classes = 2
    config.train_cfg.update(max_epochs=1, val_interval=2)
    config.update(work_dir=str(tmp_path / "run"), randomness={"seed": 0}, log_level="WARNING")
    config.default_hooks.norton.update(restarts=1, sweeps=5)
    with preserved_process():
        runner = Runner.from_cfg(config)
        model = runner.model.model
        assert isinstance(runner.model, TimmClassifier) and type(model).__name__ == "ResNet"
        with torch.no_grad():  # fresh norms are 0 and 1, and let no gradient through
            for parameter in (p for p in model.parameters() if p.dim() == 1):
                parameter += 0.1 * torch.rand_like(parameter)
        model.bn1.requires_grad_(False)  # so that not all parameters change
        dense = copy.deepcopy(model)
        runner.optim_wrapper = runner.build_optim_wrapper(config.optim_wrapper)
        step = FirstStep()
        runner.register_hook(step)
        runner.train()

    hook = next(hook for hook in runner.hooks if isinstance(hook, NortonHook))
    by_hand, report = compress(dense.eval(), torch.randn(1, 3, 32, 32), hook.recipe)
    assert report.macs_after < 0.5 * report.macs_before
    parameters = dict(by_hand.named_parameters())
    assert list(step.before) == list(parameters)
    assert all(torch.equal(value, parameters[key]) for key, value in step.before.items())

    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    images = (step.batch["inputs"].float() / 255 - mean) / std
    F.cross_entropy(by_hand.train()(images), step.batch["data_samples"]).backward()
    assert step.rate == pytest.approx([0.001])  # a tenth of 0.01: the warm-up begins
    assert {key for key in step.before if not torch.equal(step.before[key], step.after[key])} == {
        key for key, p in parameters.items() if p.requires_grad
    }
    for key, parameter in parameters.items():
        if parameter.requires_grad:
            moved = parameter.grad + 1e-4 * parameter  # Nesterov: (1 + momentum) times the first gradient
            change = step.before[key] - step.after[key]
            torch.testing.assert_close(change, 0.001 * 1.9 * moved.detach(), rtol=1e-3, atol=3e-7)


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

"""A classifier that was compressed in a run of mmengine, opened by its config and checkpoint."""

import json

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")
pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")

from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from norton_plugin.blocks import CPDBlock
from norton_plugin.cli.app import run
from norton_plugin.mm.configs.opening import open_checkpoint
from norton_plugin.mm.runner.quiet import preserved_process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The runner of one epoch on two classes, and the folder of config, checkpoint and images."""
    folder = tmp_path_factory.mktemp("classifier")
    for color in ("blue", "red"):
        (folder / "data" / color).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (50 + i, 40), color).save(folder / "data" / color / f"{i}.png")
    data = {
        "type": "NortonImageFolder",
        "root": str(folder / "data"),
        "preprocessing": {"input_size": [3, 48, 48], "crop_pct": 0.9},
    }
    loader = {"batch_size": 6, "num_workers": 0, "collate_fn": {"type": "collate_batch"}, "dataset": data}
    config = {
        "model": {
            "type": "TimmClassifier",
            "model": {"spec": "timm:resnet10t", "num_classes": 2},
            "data_preprocessor": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
        },
        "train_dataloader": {**loader, "sampler": {"type": "DefaultSampler"}},
        "val_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        "val_cfg": {},
        "val_evaluator": {"type": "TopKAccuracy"},
        "train_cfg": {"by_epoch": True, "max_epochs": 1},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "default_hooks": {"norton": {"type": "norton_plugin.NortonHook", "rank": 1, "keep": 0.5}},
        "custom_imports": {"imports": ["norton_plugin.mm"], "allow_failed_imports": False},
        "work_dir": str(folder / "work"),
        "default_scope": "mmengine",
        "experiment_name": "classifier_checkpoint",
    }
    Config(config).dump(folder / "config.py")
    with preserved_process():
        runner = Runner.from_cfg(Config.fromfile(folder / "config.py"))
        runner.train()
    return runner.model.eval(), folder


@pytest.mark.parametrize("config", ["config.py", "work/norton_config.py"])
def test_it_is_the_classifier_that_was_trained(trained, config):
    model, folder = trained
    source = open_checkpoint(folder / config, folder / "work" / "epoch_1.pth")
    assert source.spec["kind"] == "timm" and source.input_size == (3, 48, 48)
    assert (source.mean, source.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert source.preprocessing.crop_pct == 0.9
    assert any(isinstance(module, CPDBlock) for module in source.model.modules())
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    normalised = (images / 255 - model.data_preprocessor.mean) / model.data_preprocessor.std
    with torch.no_grad():
        assert torch.allclose(source.model(normalised), model.logits(images), atol=1e-6)
    asked = open_checkpoint(folder / config, folder / "work" / "epoch_1.pth", input_size=64)
    assert asked.example_inputs[0].shape == (1, 3, 64, 64)


def test_commands_for_classifiers_take_what_deploy_makes_of_it(trained, tmp_path, capsys):
    model, folder = trained
    files = [str(folder / "config.py"), str(folder / "work" / "epoch_1.pth")]
    assert run(["deploy", *files, "--static", "-o", str(tmp_path / "fast")]) == 0
    assert "detector" not in capsys.readouterr().out
    assert run(["evaluate", str(tmp_path / "fast"), "--data", str(folder / "data"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    right = 0
    for label, color in enumerate(("blue", "red")):
        shown = torch.tensor({"blue": [0, 0, 255], "red": [255, 0, 0]}[color], dtype=torch.uint8)
        logits = model.logits(shown.view(1, 3, 1, 1).expand(1, 3, 48, 48).contiguous())
        right += 3 * int(int(logits.argmax()) == label)
    assert found["n"] == 6 and found["top1"] == pytest.approx(100 * right / 6)

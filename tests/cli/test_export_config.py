"""norton export-config: a config without the hook, from the config and a checkpoint."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
from toy import toy_config

from norton_plugin.mm.runner.quiet import preserved_process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config of a run, the runner, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    with preserved_process():
        config = toy_config(folder, norton={"rank": 2, "keep": 0.5}, epochs=1)
        runner = Runner.from_cfg(config)
        runner.train()
    config.dump(str(folder / "config.py"))
    return folder / "config.py", folder / "epoch_1.pth", runner


def test_the_written_config_builds_the_compressed_model(norton, trained, tmp_path):
    config, checkpoint, runner = trained
    answer = norton("export-config", config, checkpoint, "-o", tmp_path / "small.py", "--json")
    assert answer.code == 0, answer.err
    written = Config.fromfile(tmp_path / "small.py")
    assert "norton" not in written.default_hooks and json.loads(answer.out)["modules"] > 0
    model = MODELS.build(written.model)
    load_checkpoint(model, str(checkpoint))
    # The checkpoint holds the moving average, as for testing.
    average = next(hook for hook in runner.hooks if hasattr(hook, "ema_model")).ema_model.module
    assert all(torch.equal(a, average.state_dict()[name]) for name, a in model.state_dict().items())


@pytest.mark.parametrize("case", ["no config", "no checkpoint", "there already", "dense", "no checkpoint file"])
def test_bad_input(norton, trained, tmp_path, case):
    config, checkpoint, _ = trained
    output = tmp_path / "small.py"
    if case == "no config":
        config, message = tmp_path / "absent.py", "is not there"
    elif case == "no checkpoint":
        checkpoint, message = tmp_path / "absent.pth", "is not there"
    elif case == "there already":
        output.write_text("mine")
        message = "already there"
    elif case == "dense":
        content = CheckpointLoader.load_checkpoint(str(checkpoint), "cpu")
        del content["meta"]["norton"]
        checkpoint, message = tmp_path / "dense.pth", "holds no structure"
        torch.save(content, checkpoint)
    else:
        checkpoint, message = tmp_path / "text.pth", "is no checkpoint"
        checkpoint.write_text("x")
    answer = norton("export-config", config, checkpoint, "-o", output)
    assert answer.code == 2 and message in answer.err.replace("\n", "")
    assert not output.exists() or output.read_text() == "mine"

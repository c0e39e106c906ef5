"""What the log of a run says of its compression: when it begins, that it goes on, what it left and why."""

import json
import logging
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

import torch
from mmengine.registry import MODELS
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyNet, run

from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.mm.run import after_surgery
from norton_plugin.mm.run.step_log import run_log
from norton_plugin.reasons import Reason

pytestmark = pytest.mark.mm


def log_of(folder):
    (path,) = folder.glob("*/*.log")
    return path.read_text()


@MODELS.register_module(force=True)
class AssertingNet(ToyNet):
    """Computes no loss without gradients, and does not say why."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss" and not torch.is_grad_enabled():
            raise AssertionError
        return super().forward(inputs, data_samples, mode)


def test_the_log_says_what_begins_what_was_left_and_why_before_anything_follows(tmp_path, monkeypatch):
    seen = {}

    def stopped(*args, **options):
        seen["log"] = log_of(tmp_path)
        seen["report"] = json.loads((tmp_path / "norton_report.json").read_text())
        return 0

    monkeypatch.setattr(after_surgery, "reestimate_", stopped)
    run(tmp_path, epochs=1, log_level="INFO")
    log = seen["log"]
    steps = (
        "surgery begins: rank=2, keep=0.5",
        "counting MACs",
        "decomposing the filters",
        "following the channels",
        "layers decomposed, ",
    )
    places = [log.index(words) for words in steps]
    assert places == sorted(places)
    assert "1 of 5 layers with MACs are as they were" in log  # the frozen stem
    assert "not decomposed, 1: stem is frozen (its weight needs no gradient)" in log
    assert "not pruned, 1: its channels are outputs of the model: fc" in log
    assert "decomposed 2 layers, left 2" in log  # of the package's own log
    left = seen["report"]["left"]
    assert {(entry["step"], entry["name"], entry["code"]) for entry in left} == {
        ("decomposition", "stem", "frozen"),
        ("decomposition", "stage.conv2", "rank-too-high"),
        ("pruning", "stem", "frozen"),
        ("pruning", "fc", "model-output"),
    }


def test_reasons_are_grouped_and_few_names_are_shown():
    from norton_plugin import Recipe, compress
    from norton_plugin.mm.run.left import everything_left, lines_of_left, with_frozen_named

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3 if i == 2 else 1) for i in range(7)))
    recipe = Recipe.from_dict({"decomposition": {"rank": 1}, "scope": {"exclude": ["5"]}})
    _, report = compress(model, torch.randn(1, 8, 9, 9), recipe)
    words = Reason.KERNEL_1X1.template
    assert lines_of_left(report)[0] == f"not decomposed, 5: {words}: 0, 1, 3 and 2 more"
    assert len(everything_left(report)) == 6
    named = lines_of_left(with_frozen_named(report, ["5"]))[1]
    assert named == "not decomposed, 1: 5 is frozen (its weight needs no gradient): fine-tuning could not repair it: 5"


def test_a_long_step_tells_that_it_goes_on(caplog):
    logger = logging.getLogger("a run of its own")
    with caplog.at_level(logging.INFO, logger.name), run_log(logger, every=0.05) as log:
        log("decompose")
        time.sleep(0.2)
        log("validating")
        log.detail("batch 3")
        time.sleep(0.2)
        logging.getLogger("norton_plugin.zoo.detector_parts").info("rpn_head is not traced")
    said = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert said[0] == "NORTON: decomposing the filters"
    assert sum(line.startswith("NORTON: still decomposing the filters: ") for line in said) >= 2
    assert sum(line.endswith(", batch 3") for line in said) >= 2
    assert said[-1] == "NORTON: rpn_head is not traced"
    assert not logging.getLogger("norton_plugin").handlers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the model has random weights"),
        ({"model": {"type": "ToyNet", "init_cfg": {"type": "Pretrained", "checkpoint": "PATH"}}}, None),
        ({"norton": {"at_epoch": 1}}, None),
        ({"load_from": "PATH"}, None),
    ],
)
def test_random_weights_are_warned_of(tmp_path, changes, words):
    path = tmp_path / "dense.pth"
    torch.save({"state_dict": ToyNet().state_dict(), "meta": {}}, path)
    changes = json.loads(json.dumps(changes).replace("PATH", str(path)))
    run(tmp_path / "run", log_level="INFO", **changes)
    log = log_of(tmp_path / "run")
    assert ("no load_from is given" in log) == (words is not None)
    assert words is None or words in log


def test_a_part_with_trained_weights_is_named():
    from types import SimpleNamespace

    from mmengine.config import Config

    from norton_plugin.mm.run.origin import warn_of_random_weights

    said = []
    backbone = {"type": "ResNet", "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet50"}}
    model = {"type": "RetinaNet", "backbone": backbone, "neck": {"type": "FPN", "init_cfg": {"type": "Xavier"}}}
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    for given in (model, nn.Linear(2, 2)):  # an object may have been filled by its owner
        cfg = Config({"model": given}) if given is model else {"model": given}
        warn_of_random_weights(SimpleNamespace(cfg=cfg, _load_from=None, iter=0, logger=logger))
    assert len(said) == 1 and "only backbone starts from trained weights" in said[0]


def test_a_failure_without_a_message_names_the_line(tmp_path):
    run(tmp_path, epochs=1, log_level="INFO", model={"type": "AssertingNet"})
    assert "(AssertionError: no message; raised by `raise AssertionError` in forward" in log_of(tmp_path)
    with pytest.raises(Exception, match=r"raised by `raise AssertionError` in _refuse"):
        reestimate_batch_norm_(nn.BatchNorm2d(2), [0], call=_refuse)
    with pytest.raises(AssertionError) as found:
        _refuse(None, 0)
    assert "raised by `raise AssertionError`" in Reason.BREAKS.from_error(found.value).text


def _refuse(model, batch):
    raise AssertionError

"""The stock scripts of mmdet, from its wheel, on compressed detectors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import mmdet
from mmengine.runner import CheckpointLoader

sys.path.insert(0, str(Path(__file__).parent))
from detectors import faster_rcnn, retinanet, write_coco, write_config

import norton_plugin.mm  # noqa: F401  lets mmengine read its own checkpoints
from norton_plugin.blocks import CPDBlock

pytestmark = [pytest.mark.mm, pytest.mark.slow]
# The number of threads changes the order of sums, hence the last bits: exact comparisons need one and the same.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"
NORTON = ["default_hooks.norton.type=norton_plugin.NortonHook", "default_hooks.norton.rank=2"]
NORTON += ["default_hooks.norton.keep=0.5", "default_hooks.norton.input_size=(64, 64)"]
MODELS = {"retinanet": retinanet, "faster_rcnn": faster_rcnn, "mask_rcnn": lambda: faster_rcnn(mask=True)}


def tool(name, *arguments, check=True):
    """Runs a stock script unmodified, with one thread."""
    command = [sys.executable, "-W", "ignore", str(TOOLS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder)
    return folder


@pytest.fixture(scope="module", params=list(MODELS))
def trained(request, data, tmp_path_factory):
    """A config that knows nothing of this package, and the work dir of a compressed run of it."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(folder / "config.py", MODELS[request.param](), data)
    tool("train.py", config, "--work-dir", folder / "work", "--cfg-options", *NORTON)
    return config, folder / "work"


def score(done):
    """The last bbox mAP that a script printed."""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "coco/bbox_mAP:" in line]
    return lines[-1].split("coco/bbox_mAP: ")[1].split()[0]


def weights(path):
    return CheckpointLoader.load_checkpoint(str(path), "cpu")["state_dict"]


def test_two_options_compress_and_the_scripts_agree(trained):
    config, work = trained
    state = weights(work / "epoch_2.pth")
    assert any(name.endswith(".head") for name in state)
    with_hook = tool("test.py", config, work / "epoch_2.pth", "--work-dir", work / "t", "--cfg-options", *NORTON)
    exported = tool("test.py", work / "norton_config.py", work / "epoch_2.pth", "--work-dir", work / "t")
    assert score(with_hook) == score(exported)
    importing = work / "importing.py"
    importing.write_text(config.read_text() + "custom_imports = dict(imports=['norton_plugin.mm'])\n")
    refused = tool("test.py", importing, work / "epoch_2.pth", "--work-dir", work / "t", check=False)
    assert refused.returncode != 0 and "ArtifactError" in refused.stderr  # T6


def test_resume_after_the_first_epoch(trained):
    config, work = trained
    again = work.parent / "again"
    # A bare --resume looks into the new work dir, finds nothing, and starts from the beginning.
    tool("train.py", config, "--work-dir", again, "--resume", work / "epoch_1.pth", "--cfg-options", *NORTON)
    assert not (again / "norton_report.json").exists()
    first, second = weights(work / "epoch_2.pth"), weights(again / "epoch_2.pth")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) == 0.0


def test_init_detector_and_the_inferencer(trained):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    _, work = trained
    config, checkpoint = str(work / "norton_config.py"), str(work / "epoch_2.pth")
    model = init_detector(config, checkpoint, device="cpu")
    blocks = [name for name, module in model.named_modules() if isinstance(module, CPDBlock)]
    assert blocks and not any(torch.equal(p, torch.zeros_like(p)) for p in model.get_submodule(blocks[0]).parameters())
    image = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    assert len(inference_detector(model, image).pred_instances) == 10
    inferencer = DetInferencer(model=config, weights=checkpoint, device="cpu")
    assert len(inferencer(image)["predictions"][0]["scores"]) == 10


def test_get_flops(trained):
    config, work = trained
    dense = tool("analysis_tools/get_flops.py", config, "--num-images", 1)
    small = tool("analysis_tools/get_flops.py", work / "norton_config.py", "--num-images", 1)

    def number(done, what):
        line = next(line for line in done.stdout.splitlines() if line.startswith(what))
        text = line.split(":")[1].strip()
        return float(text.rstrip("GMK ")) * {"K": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)

    assert number(small, "Params") < number(dense, "Params")


def test_killed_in_an_epoch_and_resumed(data, tmp_path):
    """kill -9 in the second epoch, then --resume, ends in the same weights."""
    config = write_config(tmp_path / "config.py", retinanet(), data, epochs=3)
    tool("train.py", config, "--work-dir", tmp_path / "whole", "--cfg-options", *NORTON)
    command = [sys.executable, str(TOOLS / "train.py"), str(config), "--work-dir", str(tmp_path / "cut")]
    command += ["--cfg-options", *NORTON]
    with open(os.devnull, "w") as quiet:
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=ENVIRONMENT)
    started = time.monotonic()
    while not (tmp_path / "cut" / "last_checkpoint").exists() and time.monotonic() - started < 300:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "epoch_3.pth").exists()
    tool("train.py", config, "--work-dir", tmp_path / "cut", "--resume", "--cfg-options", *NORTON)
    first, second = weights(tmp_path / "whole" / "epoch_3.pth"), weights(tmp_path / "cut" / "epoch_3.pth")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) == 0.0


def test_a_calibrated_detector_by_options_alone(data, tmp_path):
    """RetinaNet: a budget, fitted on training images; tested, exported and resumed as any other."""
    norton = [NORTON[0], "default_hooks.norton.calibrate=True", "default_hooks.norton.budget.macs=0.6"]
    norton += ["default_hooks.norton.restarts=1", "default_hooks.norton.sweeps=30"]
    config, work = write_config(tmp_path / "config.py", retinanet(), data), tmp_path / "work"
    tool("train.py", config, "--work-dir", work, "--cfg-options", *norton)
    report = json.loads((work / "norton_report.json").read_text())
    assert 0.58 < report["macs_after"] / report["macs_before"] <= 0.6
    targets = {layer["name"]: (layer["target"], layer["note"]) for layer in report["calibration"]["layers"]}
    assert targets["bbox_head.cls_convs.0.conv"] == ("output", "it is called 5 times")
    assert targets["backbone.layer2.1.conv2"] == ("stream", "")
    with_hook = tool("test.py", config, work / "epoch_2.pth", "--work-dir", work / "t", "--cfg-options", *norton)
    exported = tool("test.py", work / "norton_config.py", work / "epoch_2.pth", "--work-dir", work / "t")
    assert score(with_hook) == score(exported)
    again = ["--work-dir", tmp_path / "again", "--resume", work / "epoch_1.pth"]
    tool("train.py", config, *again, "--cfg-options", *norton)
    assert not (tmp_path / "again" / "norton_report.json").exists()  # nothing was compressed again
    first, second = weights(work / "epoch_2.pth"), weights(tmp_path / "again" / "epoch_2.pth")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) == 0.0

"""``norton inspect`` and ``norton compress`` on a detector of mmdet, given by its config file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
from detectors import faster_rcnn, retinanet

from norton_plugin import Recipe, compress
from norton_plugin.zoo import load_source

pytestmark = pytest.mark.mm
SIZE = 64
REGIONS = torch.tensor([[0.0, 4, 4, 40, 40], [0.0, 0, 0, 20, 60]])

FRESH = """
import sys, torch
from norton_plugin import load
from norton_plugin.artifact import read_manifest
from norton_plugin.zoo import rebuild
torch.set_num_threads(int(sys.argv[3]))
model = load(sys.argv[1], rebuild(read_manifest(sys.argv[1]).source))
x = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
with torch.no_grad():
    pyramid = model.extract_feat(x)
    regions = torch.tensor([[0.0, 4, 4, 40, 40], [0.0, 0, 0, 20, 60]])
    pooled = model.roi_head.bbox_roi_extractor(pyramid[:4], regions)
    torch.save([pyramid, model.rpn_head(pyramid), model.roi_head.bbox_head(pooled)], sys.argv[2])
"""


@pytest.fixture
def config(tmp_path):
    """Writes the model of a config into a file, tuples and all."""

    def write(model):
        model["data_preprocessor"]["mean"] = tuple(model["data_preprocessor"]["mean"])
        path = tmp_path / "detector.py"
        path.write_text(f"model = {model!r}\n")
        return f"mmdet:{path}"

    return write


def test_artefact_of_a_two_stage_detector_is_bit_equal_in_a_fresh_process(norton, config, tmp_path):
    torch.manual_seed(5)
    name = config(faster_rcnn())
    source = load_source(name, input_size=SIZE)
    torch.save(source.model.state_dict(), tmp_path / "weights.pth")
    options = ["--checkpoint", tmp_path / "weights.pth", "--input-size", SIZE, "--rank", 2, "--keep", 0.5]
    answer = norton("compress", name, *options, "-o", tmp_path / "small", "--json")
    assert (answer.code, answer.err) == (0, "")
    told = json.loads(answer.out)["report"]
    assert told["status"] == "full"

    recipe = Recipe.from_dict({"decomposition": {"rank": 2}, "pruning": {"keep": 0.5}})
    model, report = compress(source.model, source.example_inputs, recipe, forward_fn=source.forward_fn)
    assert (told["macs_before"], told["macs_after"]) == (report.macs_before, report.macs_after)
    assert {group.root.split(".")[0] for group in report.pruning.groups} == {"backbone", "neck", "rpn_head", "roi_head"}
    (tmp_path / "detector.py").unlink()  # the artefact holds the config
    arguments = [str(tmp_path / "small"), str(tmp_path / "out.pt"), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, *arguments], check=True)
    x = torch.linspace(-2, 2, 3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE)
    with torch.no_grad():
        pyramid = model.extract_feat(x)
        pooled = model.roi_head.bbox_roi_extractor(pyramid[:4], REGIONS)
        expected = [pyramid, model.rpn_head(pyramid), model.roi_head.bbox_head(pooled)]
    found = torch.load(tmp_path / "out.pt")
    pairs = list(zip(*(torch.utils._pytree.tree_leaves(outputs) for outputs in (found, expected)), strict=True))
    assert len(pairs) == 5 + 10 + 2 and pyramid[0].shape[1] == pooled.shape[1] == 8
    assert all(torch.equal(a, b) for a, b in pairs)

    # The artefact is run part by part as well.
    inspected = json.loads(norton("inspect", tmp_path / "small", "--json").out)
    assert (inspected["macs"], inspected["parameters"]) == (report.macs_after, report.parameters_after)
    again = norton("compress", tmp_path / "small", "--keep", 0.9, "--round-to", 1, "-o", tmp_path / "smaller", "--json")
    assert json.loads(again.out)["report"]["macs_before"] == report.macs_after


def test_inspect_counts_every_part(norton, config):
    answer = norton("inspect", config(faster_rcnn()), "--input-size", SIZE, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    layers = {layer["name"]: layer for layer in found["layers"]}
    # 20 regions (the config's max_per_img) of 16 x 7 x 7 numbers.
    # The RPN's convolution runs on maps of 16, 8, 4, 2 and 1 pixels a side.
    assert layers["roi_head.bbox_head.shared_fcs.0"]["macs"] == 20 * 16 * 49 * 32
    assert layers["rpn_head.rpn_conv"]["macs"] == 16 * 16 * 9 * (256 + 64 + 16 + 4 + 1)
    assert layers["neck.fpn_convs.0.conv"]["macs"] == 16 * 16 * 9 * 256
    assert found["macs"] >= sum(layer["macs"] for layer in layers.values()) > 0
    assert found["input_size"] == [3, SIZE, SIZE]


def test_single_stage(norton, config, tmp_path):
    options = ["--input-size", SIZE, "--keep", 0.5, "-o", tmp_path / "small"]
    answer = norton("compress", config(retinanet()), *options, "--json")
    assert answer.code == 0
    report = json.loads(answer.out)["report"]
    assert report["status"] == "full"
    assert report["largest_error"] < 1e-4
    layers = {layer["name"]: layer for layer in report["layers"]}
    shares = {
        name: layer["macs_after"] / layer["macs_before"] for name, layer in layers.items() if name.startswith("bbox")
    }
    # Half of the outputs go, then half of the inputs as well; what the head returns keeps its width.
    assert shares == {
        **{f"bbox_head.{branch}_convs.0.conv": 0.25 for branch in ("cls", "reg")},
        **{f"bbox_head.{branch}_convs.1.conv": 0.25 for branch in ("cls", "reg")},
        **{f"bbox_head.retina_{branch}": 0.5 for branch in ("cls", "reg")},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "--num-classes", 3], "num_classes of a detector is set in its config"),
        (["evaluate", "--data", "."], "is a detector, and this command works on classifiers"),
        (["finetune", "--data", ".", "-o", "out"], "is a detector, and this command works on classifiers"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_detectors_do_not_have(norton, config, arguments, message):
    command, *options = arguments
    answer = norton(command, config(retinanet()), "--input-size", SIZE, *options)
    assert answer.code == 2
    assert message in answer.err and answer.err.count("\n") == 1

"""``norton report``, ``norton cam`` and ``norton compare`` on the network of the demonstration."""

import json
from types import SimpleNamespace

import pytest
import torch

from norton_plugin.artifact import load
from norton_plugin.cli.models import check_classifier, open_dense, open_model
from norton_plugin.errors import SourceError
from norton_plugin.zoo import load_source

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'norton-plugin[timm]'")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    from norton_plugin.cli.app import run

    path = tmp_path_factory.mktemp("pictures") / "small"
    assert run(["compress", "demo:digits", "--rank", "2", "--seed", "7", "-o", str(path)]) == 0
    return path


@pytest.fixture
def photos(tmp_path):
    """Two images, and a file that only looks like one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        Image.effect_noise((24, 20), 90 + i).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


def test_report(norton, artefact, tmp_path):
    pytest.importorskip("jinja2", reason="needs jinja2: pip install 'norton-plugin[insight]'")
    answer = norton("report", artefact, "-o", tmp_path / "page.html", "--json")
    assert (answer.code, json.loads(answer.out)["page"]) == (0, str(tmp_path / "page.html"))
    assert "layer3.conv2" in (tmp_path / "page.html").read_text()
    assert norton("report", artefact).code == 0 and (artefact / "report.html").is_file()
    load(artefact)  # the page beside it does not make it another artefact


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "nowhere"], "is not a folder"),
        (["report", "."], "is not an artefact"),
        (["report", "{small}", "-o", "."], "is a folder"),
        (["cam", "{small}", "-o", "a.png"], "there is no image or a folder of images"),
        (["cam", "{photos}", "-o", "a.png"], "there is no artefact among the arguments"),
        (["cam", "{small}", "{photos}", "-o", "a.gif"], "should end in .png"),
        (["cam", "{small}", "{photos}/broken.png"], "none of the 1 images can be read"),
        (["cam", "{small}", "{photos}/9.png"], "is not there"),
        (["cam", "{small}", "{photos}", "--layer", "layer9"], "has no layer 'layer9'"),
        (["compare", "{small}", "{photos}", "-o", "a.avi"], "should end in one of .png, .gif, .mp4"),
        (["compare", "{small}", "{photos}", "--dense", "pretrained"], "no pretrained weights of demo:digits"),
        (["compare", "{photos}", "{photos}"], "without norton.json"),
    ],
)
def test_bad_input(norton, artefact, photos, tmp_path, monkeypatch, arguments, told):
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'norton-plugin[cam]'")
    monkeypatch.chdir(tmp_path)
    answer = norton(*(text.format(small=artefact, photos=photos) for text in arguments))
    assert answer.code == 2
    assert told in " ".join(answer.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_cam(norton, artefact, photos, tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'norton-plugin[cam]'")
    answer = norton("cam", artefact, artefact, photos, "-o", tmp_path / "cam.png", "--json")
    assert answer.code == 0
    assert "broken.png is left out" in " ".join(answer.err.split())
    found = json.loads(answer.out)
    assert [each["image"][-5:] for each in found["images"]] == ["0.png", "1.png"]
    assert [each["image"][-10:] for each in found["skipped"]] == ["broken.png"]
    assert found["layer"] == "layer3" and len(found["mean_correlations"]) == 2
    assert all(len(each["classes"]) == 3 and len(each["correlations"]) == 2 for each in found["images"])
    picture = Image.open(tmp_path / "cam.png")
    assert picture.width >= 4 * 160 and picture.height >= 2 * 160


def test_cam_refuses_artefacts_of_different_models(norton, artefact, photos, tmp_path):
    assert norton("compress", "demo:digits", "--num-classes", 4, "--rank", 2, "-o", tmp_path / "other").code == 0
    answer = norton("cam", artefact, tmp_path / "other", photos)
    assert answer.code == 2 and "come from different dense models" in " ".join(answer.err.split())


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_compare(norton, artefact, photos, tmp_path, suffix):
    output = tmp_path / f"both.{suffix}"
    answer = norton("compare", artefact, photos, "--rounds", 2, "-o", output, "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["dense_ms"] / found["compressed_ms"] == pytest.approx(found["speed_up"])
    assert [set(each) for each in found["images"]] == [{"image", "dense", "compressed"}] * 2
    assert Image.open(output).format == suffix.upper()
    assert getattr(Image.open(output), "n_frames", 1) == (2 if suffix == "gif" else 1)


def test_random_weights_of_the_dense_model_are_drawn_again(artefact):
    opened = open_model(str(artefact))
    dense = open_dense(opened, None)
    assert torch.equal(dense.fc.weight, opened.model.fc.weight)  # which rank 2 leaves as it was
    assert dense.conv1.weight.shape == (32, 1, 3, 3)


def test_weights_that_nobody_has_are_asked_for(artefact):
    from dataclasses import replace

    opened = open_model(str(artefact))
    told = replace(opened.manifest, extra={**opened.manifest.extra, "weights": "dense.pth"})
    with pytest.raises(SourceError, match=r"they came from 'dense.pth'\); give --dense FILE"):
        open_dense(replace(opened, manifest=told), None)


SEGMENTER = """
import torch
from torch import nn

def net():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 2, 1))
"""


def test_a_network_of_ones_own_has_the_weights_that_its_function_gives(norton, photos, tmp_path, monkeypatch):
    (tmp_path / "own_segmenter.py").write_text(SEGMENTER)
    monkeypatch.chdir(tmp_path)
    answer = norton("compress", "python:own_segmenter:net", "--rank", 2, "--input-size", 16, "-o", "small")
    assert (answer.code, answer.err) == (0, "")
    small = open_model("small", trust_code=True)
    assert small.manifest.extra["weights"] == "as built"
    assert torch.equal(open_dense(small, None)[0].weight, load_source("python:own_segmenter:net").model[0].weight)
    answer = norton("compare", "small", photos, "-o", "pair.png", "--trust-code")
    assert answer.code == 2
    assert "expected scores of classes" in answer.err and "does not run" not in answer.err


NAMED_SCORES = """
import torch
from torch import nn

class Net(nn.Module):
    input_size = (3, 16, 16)

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        maps = self.stem(x)
        return {"hidden": maps, "logits": self.head(maps.mean((2, 3)))}
"""


@pytest.mark.parametrize("command", ["evaluate", "cam", "compare"])
def test_scores_inside_a_dict_are_refused_with_what_to_do(norton, photos, tmp_path, monkeypatch, command):
    for extra in {"evaluate": ["mmengine"], "cam": ["pytorch_grad_cam"], "compare": []}[command]:
        pytest.importorskip(extra, reason=f"needs {extra}")
    (tmp_path / "named_scores.py").write_text(NAMED_SCORES)
    monkeypatch.chdir(tmp_path)
    assert norton("compress", "python:named_scores:Net", "--rank", 1, "-o", "small").code == 0
    arguments = ["--data", photos.parent] if command == "evaluate" else [photos, "-o", "seen.png"]
    answer = norton(command, "small", *arguments, "--trust-code")
    assert answer.code == 2
    told = " ".join(answer.err.split())
    assert "returns dict with 'hidden', 'logits'; expected " in told
    assert "python:MODULE:FUNCTION, whose model returns output['logits'] alone (docs/transformers.md shows one)" in told


def test_a_detector_of_torchvision_is_no_classifier():
    detection = pytest.importorskip("torchvision.models.detection")
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(SourceError, match="ssd is a detector, and this command works on classifiers; norton compare"):
        check_classifier(SimpleNamespace(name="ssd", model=model, forward_fn=None))

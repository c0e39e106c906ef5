"""Small YOLOs with weights that are alive, and images whose labels are what a model itself finds in them."""

import importlib
import os
from pathlib import Path

import pytest
import torch
from yolos import CLASSES, SIZE, enliven_, image


@pytest.fixture(scope="session", autouse=True)
def _ultralytics_at_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep its settings out of the user's home, and its hands off the network and off installed packages."""
    os.environ.update(
        YOLO_CONFIG_DIR=str(tmp_path_factory.mktemp("ultralytics")),
        YOLO_OFFLINE="True",
        YOLO_AUTOINSTALL="False",
        YOLO_VERBOSE="False",
    )
    pytest.importorskip("ultralytics", reason="needs ultralytics: pip install ultralytics (AGPL-3.0)")


@pytest.fixture
def build():
    """Return a function that makes a YOLO of three classes from the name of a YAML file of Ultralytics."""

    def built(name):
        ultralytics = importlib.import_module("ultralytics")
        tasks = importlib.import_module("ultralytics.nn.tasks")
        torch.manual_seed(0)
        yolo = ultralytics.YOLO(f"{name}.yaml")
        yolo.model = tasks.DetectionModel(yolo.model.yaml, nc=CLASSES, verbose=False)
        yolo.model.task = yolo.task
        yolo.model.names = {0: "red", 1: "white", 2: "plate"}
        enliven_(yolo.model)
        return yolo

    return built


@pytest.fixture
def self_labelled(tmp_path):
    """Return a function that writes a data set on which a given model is right: its own boxes are the labels."""

    def written(model, count=4) -> Path:
        cv2, nms = importlib.import_module("cv2"), importlib.import_module("ultralytics.utils.nms")
        for split in ("train", "val"):
            for kind in ("images", "labels"):
                (tmp_path / "data" / kind / split).mkdir(parents=True)
            for number in range(count):
                pixels = image(number)
                path = tmp_path / "data" / "images" / split / f"{number}.png"
                cv2.imwrite(str(path), pixels.flip(0).permute(1, 2, 0).numpy())
                with torch.no_grad():
                    (boxes,) = nms.non_max_suppression(model(pixels[None] / 255)[0], 0.3, 0.7, multi_label=True)
                rows = [
                    f"{int(kind)} {(a + c) / 2 / SIZE} {(b + d) / 2 / SIZE} {(c - a) / SIZE} {(d - b) / SIZE}"
                    for a, b, c, d, _, kind in (box.tolist() for box in boxes)
                    if 0 <= a < c <= SIZE and 0 <= b < d <= SIZE
                ]
                (tmp_path / "data" / "labels" / split / f"{number}.txt").write_text("\n".join(rows))
        names = "\n".join(f"  {number}: {name}" for number, name in model.names.items())
        page = tmp_path / "data" / "data.yaml"
        page.write_text(f"path: {page.parent}\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
        return page

    return written

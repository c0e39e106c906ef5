"""The artefacts that are damaged and edited: one of every ecosystem, written by ``norton compress``."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuzzing.commands import run_command
from norton_plugin import artifact
from norton_plugin.zoo import rebuild

MANIFEST, WEIGHTS = "norton.json", "model.safetensors"
# What an edit must not change unless the hashes follow; the report is for people.
_HASHED = ("structure", "source", "extra", "recipe")
_RECIPE = {
    "decomposition": {"rank": 2, "restarts": 1, "sweeps": 5, "allow_dearer": True},
    "pruning": {"keep": 0.6, "round_to": 1},
}
_SOURCES = {
    "cifar": ["cifar:resnet20"],
    "demo": ["demo:digits"],
    "timm": ["timm:test_efficientnet", "--input-size", "32"],
    "torchvision": ["torchvision:squeezenet1_1", "--input-size", "48", "--num-classes", "4"],
}
# A detector of two stages and few channels, as the config of a user.
_DETECTOR = """
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=3)))
"""


@dataclass(frozen=True)
class Known:
    """A sound artefact and what is known of it.

    Attributes:
        name: Its ecosystem.
        directory: Where it lies; never changed.
        data: What ``norton.json`` holds.
        dense: The original, built once.
        facts: ``facts_of`` the model that was saved.
        inspected: What ``norton inspect --json`` prints of it.
    """

    name: str
    directory: Path
    data: dict[str, Any]
    dense: nn.Module
    facts: dict[str, Any]
    inspected: Any


def known_artefacts(folder: Path, *, only: tuple[str, ...] = ()) -> list[Known]:
    """Build the artefacts, unless an earlier worker of this run did, and load each once.

    Args:
        folder: Of the run.
        only: Ecosystems; all that are installed by default.
    """
    root = folder / "artefacts"
    root.mkdir(parents=True, exist_ok=True)
    sources = dict(_SOURCES)
    if find_spec("mmdet") is not None and find_spec("mmcv") is not None:
        config = root / "detector.py"
        config.write_text(_DETECTOR)
        sources["mmdet"] = [f"mmdet:{config}", "--input-size", "64"]
    (root / "recipe.json").write_text(json.dumps(_RECIPE))
    return [_known(root / name, source) for name, source in sources.items() if not only or name in only]


def _known(directory: Path, source: list[str]) -> Known:
    if not (directory / MANIFEST).exists():
        recipe = ["--recipe", str(directory.parent / "recipe.json")]
        answer = run_command(["compress", *source, *recipe, "-o", str(directory)])
        if answer.code != 0:
            raise RuntimeError(f"{source[0]} cannot be compressed: {answer.err}")
    answer = run_command(["--json", "inspect", str(directory)])
    if answer.code != 0:
        raise RuntimeError(f"{directory.name} cannot be inspected: {answer.err}")
    manifest = artifact.read_manifest(directory)
    dense = rebuild(manifest.source or {})
    facts = facts_of(artifact.load(directory, dense))
    data = json.loads((directory / MANIFEST).read_text())
    return Known(directory.name, directory, data, dense, facts, json.loads(answer.out))


def facts_of(model: nn.Module) -> dict[str, Any]:
    """Everything a loaded model must have in common with the saved one: tensors and settings of its modules."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"state": state, "modules": {name: _settings(module) for name, module in model.named_modules()}}


def _settings(module: nn.Module) -> dict[str, Any]:
    plain = (bool, int, float, str, tuple, list, type(None))
    settings = {key: repr(value) for key, value in vars(module).items() if isinstance(value, plain)}
    return {"kind": type(module).__name__, **settings}


def same_facts(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Tell whether two models are equal to the bit."""
    one, other = first["state"], second["state"]
    return (
        first["modules"] == second["modules"]
        and list(one) == list(other)
        and all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)
    )


def same_manifest(manifest: artifact.Manifest, data: dict[str, Any]) -> bool:
    """Tell whether all that decides what is loaded, and how its images are normalised, is what was saved."""
    texts = [
        json.dumps([getattr(manifest, key) for key in _HASHED], sort_keys=True),
        json.dumps([data[key] for key in _HASHED], sort_keys=True),
    ]
    return texts[0] == texts[1]


def scratch_copy(known: Known, folder: Path) -> Path:
    """Make a folder with both files of an artefact; large ones are links that must be replaced, not written."""
    directory = Path(tempfile.mkdtemp(prefix="case-", dir=folder))
    for name in (MANIFEST, WEIGHTS):
        os.link(known.directory / name, directory / name)
    return directory


def replace_file(path: Path, content: bytes) -> None:
    """Put a new file in the place of one that may be a link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def remove(directory: Path) -> None:
    """Remove a scratch folder."""
    shutil.rmtree(directory, ignore_errors=True)


def fresh(known: Known) -> nn.Module:
    """Return a dense model of its own."""
    return copy.deepcopy(known.dense)

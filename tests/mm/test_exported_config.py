"""The config of a compressed model is short, complete or not there at all, and older ones still load."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.config import Config
from mmengine.registry import MODELS

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyNet, toy_config

from norton_plugin import Recipe, compress
from norton_plugin.errors import ArtifactError
from norton_plugin.mm import export_config
from norton_plugin.mm.configs.export import write_config
from norton_plugin.surgery.geometry import geometry


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    recipe = Recipe.from_dict({"decomposition": {"rank": 2, "restarts": 1, "sweeps": 2}, "pruning": {"keep": 0.5}})
    return compress(ToyNet().eval(), torch.randn(1, 3, 8, 8), recipe)


def test_the_structure_takes_one_line(small, tmp_path):
    config = toy_config("x", norton={"rank": 2})
    config.dump(str(tmp_path / "dense.py"))
    path = write_config(config, small.report.structure, tmp_path)
    lines, dense = (len(p.read_text().splitlines()) for p in (path, tmp_path / "dense.py"))
    assert lines <= dense + 5
    built = MODELS.build(Config.fromfile(path).model)
    assert geometry(built) == geometry(small.model)
    # mmengine writes the config again wherever it logs or copies it.
    Config.fromfile(path).dump(str(tmp_path / "copy.py"))
    assert geometry(MODELS.build(Config.fromfile(tmp_path / "copy.py").model)) == geometry(small.model)


@pytest.mark.parametrize("suffix", ["py", "json", "yaml"])
def test_configs_with_a_structure_of_nested_dicts_still_load(small, tmp_path, suffix):
    old = export_config({"model": {"type": "ToyNet"}}, small.report.structure)
    old.model.norton.structure = json.loads(json.dumps(small.report.structure))
    old.dump(str(tmp_path / f"old.{suffix}"))
    loaded = Config.fromfile(tmp_path / f"old.{suffix}").model
    assert not isinstance(loaded.norton.structure, str)
    assert geometry(MODELS.build(loaded)) == geometry(small.model)


def test_a_config_is_whole_or_what_it_was(small, tmp_path, monkeypatch):
    (tmp_path / "norton_config.py").write_text("before = 1\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device\)"):
        write_config({"model": {"type": "ToyNet"}}, small.report.structure, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["norton_config.py"]
    assert (tmp_path / "norton_config.py").read_text() == "before = 1\n"


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "5", '{"version": 1}', '{"version": 1, "version": 1}'])
def test_a_damaged_structure_is_refused(text):
    with pytest.raises(ArtifactError):
        MODELS.build({"type": "norton_plugin.mm.CompressedModel", "norton": {"type": "ToyNet", "structure": text}})

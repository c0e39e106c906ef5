"""A checkpoint of a stranger: what it says of its structure becomes no code in the config that is written from it."""

import hashlib
import json

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.config import Config

from norton_plugin.errors import ArtifactError
from norton_plugin.mm import export_config, export_config_of_checkpoint
from norton_plugin.mm.configs.structure_text import structure_from_config


@pytest.fixture
def exported(tmp_path):
    """Writes a checkpoint with a structure and its hash, then the config; returns its path."""

    def export(structure, **content):
        canonical = json.dumps(structure, sort_keys=True, separators=(",", ":"))
        entry = {"structure": structure, "structure_hash": hashlib.sha256(canonical.encode()).hexdigest()}
        torch.save({"state_dict": {}, "meta": {"norton": entry}, **content}, tmp_path / "small.pth")
        (tmp_path / "dense.py").write_text("model = dict(type='ResNet', depth=18)\n")
        export_config_of_checkpoint(tmp_path / "dense.py", tmp_path / "small.pth", tmp_path / "small.py")
        return tmp_path / "small.py"

    return export


def attacks(mark):
    code = f"__import__('pathlib').Path('{mark}').touch()"
    return [f"a': {code}, 'b", f"'+{code}+'", f"{{{{$NONE:'+{code}+'}}}}", f"a\n{code}\n"]


def structures(text):
    yield {"version": 1, "source": {text: [1]}, "modules": []}
    yield {"version": 1, "source": {"a b": text}, "modules": []}
    yield {"version": 1, "source": {}, "modules": [{"names": [text], "resize": {}, "attributes": {text: text}}]}


@pytest.mark.parametrize("attack", range(4))
@pytest.mark.parametrize("place", range(3))
def test_text_of_a_structure_cannot_become_code(exported, tmp_path, attack, place):
    structure = list(structures(attacks(tmp_path / "ran")[attack]))[place]
    with pytest.raises(ArtifactError, match="which is no name of a module or a setting; do not use this file"):
        exported(structure)
    assert not (tmp_path / "small.py").exists()


@pytest.mark.parametrize("attack", range(4))
@pytest.mark.parametrize("place", range(3))
def test_text_of_a_structure_stays_text_without_the_check_as_well(tmp_path, attack, place):
    structure = list(structures(attacks(tmp_path / "ran")[attack]))[place]
    export_config({"model": {"type": "ResNet", "depth": 18}}, structure).dump(str(tmp_path / "small.py"))
    found = Config.fromfile(tmp_path / "small.py").model.norton.structure
    assert structure_from_config(found) == structure
    assert not (tmp_path / "ran").exists()


def test_the_first_attack_works_where_a_structure_is_nested_dicts(tmp_path):
    """As in configs of before; otherwise the tests above would prove nothing."""
    structure = next(structures(attacks(tmp_path / "ran")[0]))
    config = export_config({"model": {"type": "ResNet", "depth": 18}}, structure)
    config.model.norton.structure = structure
    config.dump(str(tmp_path / "small.py"))
    assert not (tmp_path / "ran").exists()
    Config.fromfile(tmp_path / "small.py")
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["{{ fileDirname }}", "{{$NONE:x}}", "{{ _base_.a }}", "\\{{{{'\"}}}}"])
def test_mmengine_replaces_nothing_in_a_structure(tmp_path, text):
    structure = {"modules": [{text: [text, {"a": {"b": {}}}]}]}
    config = export_config({"model": {"type": "ResNet", "depth": 18}}, structure)
    config.dump(str(tmp_path / "small.py"))
    assert structure_from_config(Config.fromfile(tmp_path / "small.py").model.norton.structure) == structure
    if not text.startswith("\\"):  # as plain JSON it would be replaced
        config.model.norton.structure = json.dumps(structure)
        config.dump(str(tmp_path / "small.py"))
        with pytest.raises(Exception):  # noqa: B017, PT011
            assert json.loads(Config.fromfile(tmp_path / "small.py").model.norton.structure) == structure


@pytest.mark.parametrize("structure", [{}, [], "text", 5, {"modules": 5}, {"version": 1, "source": {}}])
def test_a_structure_that_is_none_is_refused(exported, structure):
    with pytest.raises(ArtifactError, match="is damaged: the structure lists no modules"):
        exported(structure)


@pytest.mark.parametrize("content", [torch.zeros(2), [1], 5])
def test_content_that_is_no_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "small.pth")
    (tmp_path / "dense.py").write_text("model = dict(type='ResNet', depth=18)\n")
    with pytest.raises(ArtifactError, match="holds no structure"):
        export_config_of_checkpoint(tmp_path / "dense.py", tmp_path / "small.pth", tmp_path / "small.py")


def test_a_structure_that_json_cannot_hold_is_refused(tmp_path):
    entry = {"structure": {"modules": [torch.zeros(2)]}, "structure_hash": "0" * 64}
    torch.save({"meta": {"norton": entry}}, tmp_path / "small.pth")
    (tmp_path / "dense.py").write_text("model = dict(type='ResNet', depth=18)\n")
    with pytest.raises(ArtifactError, match="structure (does not match its hash|is no JSON)"):
        export_config_of_checkpoint(tmp_path / "dense.py", tmp_path / "small.pth", tmp_path / "small.py")


def test_names_that_models_have_pass(exported):
    source = {"backbone.layer1.0.conv1.weight": [8, 3, 3, 3], "neck.convs.0.<block>": {"padding_mode": "zeros"}}
    entry = {"names": ["a.b-c d/1"], "resize": {"weight": [4]}, "attributes": {"stride": {"tuple": [1, 1]}, "x": None}}
    structure = {"version": 1, "source": source, "modules": [entry]}
    assert structure_from_config(Config.fromfile(exported(structure)).model.norton.structure) == structure

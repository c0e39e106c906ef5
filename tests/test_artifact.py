"""Artefacts: bit-equal after loading, and never half-written, half-loaded or silently wrong."""

import copy
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from norton_plugin.artifact import MANIFEST, WEIGHTS, load, load_weights_, read_manifest, save, weights
from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import ArtifactError, SourceError
from norton_plugin.pipeline import CompressionReport, CompressionResult, compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.zoo.cifar import resnet20

QUICK = Recipe(
    decomposition=Decomposition(rank=2, restarts=1, sweeps=5, allow_more_macs=True),
    pruning=Pruning(keep=0.5, round_to=1),
)


class Small(nn.Module):
    """A convolution used twice, a norm, and two Linear layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.alias = self.twice
        self.wide = nn.Conv2d(16, 16, 1)
        self.left = nn.Linear(16, 16, bias=False)
        self.right = nn.Linear(16, 16, bias=False)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = self.wide(torch.relu(self.alias(torch.relu(self.twice(y))))).mean((2, 3))
        return self.right(torch.relu(self.left(y)))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def small(image: Tensor) -> tuple[nn.Module, CompressionReport]:
    return compress(Small().eval(), image, QUICK)


@pytest.fixture
def saved(tmp_path: Path, small: tuple[nn.Module, CompressionReport]) -> Path:
    model, report = small
    return save(tmp_path / "artefact", model, report.structure, recipe=QUICK.to_dict(), report=report.to_dict())


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


FRESH = """
import sys, torch
torch.set_num_threads(1)
torch.manual_seed(99)
from norton_plugin import load
from norton_plugin.zoo.cifar import resnet20
model = load(sys.argv[1], resnet20().eval())
torch.save([model(torch.load(sys.argv[2])), model.training], sys.argv[3])
"""


def test_a_fresh_process_computes_the_same_bits(tmp_path):
    dense = resnet20().eval()
    for module in dense.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    recipe = Recipe(decomposition=Decomposition(rank=2, restarts=1, sweeps=20), pruning=Pruning(keep=0.5))
    x = torch.randn(2, 3, 32, 32)
    model, report = compress(dense, x, recipe)
    assert report.macs_after < 0.5 * report.macs_before
    save(tmp_path / "artefact", model, report.structure)
    torch.save(x, tmp_path / "x.pt")
    with torch.no_grad():
        expected = model(x)
        assert (expected - dense(x)).abs().max() > 1e-2
    arguments = [str(tmp_path / name) for name in ("artefact", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, capture_output=True, text=True)
    output, training = torch.load(tmp_path / "y.pt")
    assert torch.equal(output, expected) and training is False


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("resnet18", "is not a model source"),
        ({"kind": "python"}, "lacks name"),
        ({"kind": "foo", "name": "x"}, "unknown kind of model source 'foo'"),
        ({"name": "x"}, "lacks kind"),
    ],
)
def test_a_source_that_names_no_model_is_refused_before_anything_is_written(tmp_path, small, source, words):
    result = CompressionResult(*small, QUICK)
    with pytest.raises(SourceError, match=words):
        result.save(tmp_path / "a", source=source)
    assert not (tmp_path / "a").exists()


def test_a_source_may_be_given_in_words(tmp_path, small):
    CompressionResult(*small, QUICK).save(tmp_path / "a", source="python:m:f")
    assert read_manifest(tmp_path / "a").source == {"kind": "python", "name": "m:f", "kwargs": {}}


def test_the_manifest_says_what_was_stored(tmp_path, small):
    model, report = small
    source = {"kind": "python", "name": "m:f", "kwargs": {"a": [1]}}
    plain = report.to_dict()
    save(
        tmp_path / "a",
        model,
        report.structure,
        recipe=QUICK.to_dict(),
        report=plain,
        source=source,
        extra={"top1": 1.5},
    )
    manifest = read_manifest(tmp_path / "a")
    assert Recipe.from_dict(manifest.recipe) == QUICK
    assert manifest.structure == json.loads(json.dumps(report.structure))
    assert manifest.report["macs_after"] == report.macs_after
    assert manifest.source == source and manifest.extra == {"top1": 1.5}
    skipped = manifest.report["decomposition"]["skipped"] + manifest.report["pruning"]["skipped"]
    assert skipped == [{"name": s.name, "code": s.code, "reason": s.reason} for s in report.skipped]
    assert {"kernel-1x1", "model-output"} <= {entry["code"] for entry in skipped}
    assert {p.name for p in (tmp_path / "a").iterdir()} == {MANIFEST, WEIGHTS}


def test_an_artefact_written_before_reasons_had_codes_still_loads(saved, small, image):
    data = json.loads((saved / MANIFEST).read_text())
    for phase in ("decomposition", "pruning"):
        for entry in data["report"][phase]["skipped"]:
            del entry["code"]
    del data["report"]["pruning"]["rule_failures"]
    del data["manifest_hash"]  # no artefact had one then
    (saved / MANIFEST).write_text(json.dumps(data))
    assert read_manifest(saved).report == data["report"]
    assert torch.equal(load(saved, Small().eval())(image), small[0](image))


def test_shared_modules_and_tied_parameters_stay_one(saved, small, image):
    model, _ = small
    dense = Small().eval()
    before = copy.deepcopy(dense.state_dict())
    loaded = load(saved, dense)
    assert torch.equal(loaded(image), model(image)) and not torch.equal(loaded(image), dense(image))
    assert isinstance(loaded.twice, CPDBlock) and loaded.twice is loaded.alias
    assert (loaded.left.weight is loaded.right.weight) is (model.left.weight is model.right.weight)
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())
    assert not any(isinstance(m, CPDBlock) for m in dense.modules())


def test_tied_weights_that_are_left_alone_stay_tied(tmp_path, image):
    recipe = Recipe(decomposition=QUICK.decomposition)
    model, report = compress(Small().eval(), image, recipe)
    loaded = load(save(tmp_path / "a", model, report.structure), Small().eval())
    assert loaded.left.weight is loaded.right.weight
    assert torch.equal(loaded.left.weight, model.left.weight)
    assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types_come_back_even_into_a_single_precision_model(tmp_path, small, image, dtype):
    model, report = small
    model = copy.deepcopy(model).to(dtype)
    loaded = load(save(tmp_path / "a", model, report.structure), Small().eval())
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(image.to(dtype)), model(image.to(dtype)))


def test_mixed_data_types_are_not_rounded(tmp_path, small):
    model, report = small
    model = copy.deepcopy(model).half()
    model.norm.float()
    model.norm.running_mean.fill_(1 + 2**-20)  # not a number of half precision
    loaded = load(save(tmp_path / "a", model, report.structure), Small().eval())
    assert loaded.norm.weight.dtype == torch.float32 and loaded.stem.bias.dtype == torch.float16
    assert loaded.norm.running_mean.tolist() == model.norm.running_mean.tolist() != [1.0] * len(model.norm.running_mean)
    own = model.state_dict()
    assert all(v.dtype == own[k].dtype and torch.equal(v, own[k]) for k, v in loaded.state_dict().items())


def _edit(directory: Path, **changes) -> None:
    data = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps({**data, **changes}))


def _edit_structure(directory: Path) -> None:
    data = json.loads((directory / MANIFEST).read_text())
    data["structure"]["modules"][0]["names"] = ["other"]
    (directory / MANIFEST).write_text(json.dumps(data))


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _swap_weights(directory: Path) -> None:
    tensors = {k: torch.zeros_like(v) for k, v in load_file(directory / WEIGHTS).items()}
    save_file(tensors, directory / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: _cut(d / WEIGHTS, 0.5), "model.safetensors is no whole file of safetensors"),
        (lambda d: _cut(d / WEIGHTS, 0.0), "header too small.* it is truncated or was replaced"),
        (_swap_weights, "does not match the hash"),
        (lambda d: (d / WEIGHTS).unlink(), "model.safetensors cannot be read"),
        (lambda d: _cut(d / MANIFEST, 0.5), "norton.json is damaged"),
        (lambda d: (d / MANIFEST).write_bytes(b"\xff\xfe"), "norton.json is damaged"),
        (lambda d: (d / MANIFEST).unlink(), "is not an artefact: norton.json cannot be read"),
        (lambda d: (d / MANIFEST).write_text("[]"), "is not the manifest of an artefact"),
        (lambda d: _edit(d, format="other"), "is not the manifest of an artefact"),
        (lambda d: _edit(d, version=2), "has version 2, this package reads version 1"),
        (lambda d: _edit(d, structure_hash="0" * 64), "norton.json does not match its hash"),
        (lambda d: _edit(d, weights_hash="0" * 64), "norton.json does not match its hash"),
        (lambda d: _edit(d, structure=None), "norton.json does not match its hash"),
        (lambda d: _edit(d, source={"kind": "other"}), "norton.json does not match its hash"),
        (lambda d: _edit(d, extra={"preprocessing": {"mean": [0.0]}}), "norton.json does not match its hash"),
        (lambda d: _edit(d, recipe={}), "norton.json does not match its hash"),
        (_edit_structure, "does not match its hash: it was edited"),
    ],
)
def test_a_damaged_artefact_is_refused(saved, damage, message):
    damage(saved)
    model = Small().eval()
    text, before = repr(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ArtifactError, match=message):
        load(saved, model)
    assert repr(model) == text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere is not an artefact"):
        load(tmp_path / "nowhere", Small())


def test_a_foreign_model_is_refused(saved):
    with pytest.raises(ArtifactError, match="not the one that was compressed: conv1.weight is .* from absent"):
        load(saved, resnet20())


def test_weights_must_fit_in_every_name_and_shape():
    model = nn.Linear(2, 3)
    before = copy.deepcopy(model.state_dict())
    good = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    for tensors, message in (
        ({"weight": good["weight"]}, "the weights lack bias"),
        ({**good, "gain": torch.ones(1)}, "the weights hold gain"),
        ({**good, "bias": torch.ones(4)}, r"bias has shape \(4,\) in the weights, \(3,\) in the model"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_weights_(model, tensors)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ArtifactError, match="weight is on the meta device"):
        load_weights_(nn.Linear(2, 3, device="meta"), good)
    load_weights_(model, good)
    assert model(torch.ones(1, 2)).tolist() == [[3.0, 3.0, 3.0]]


def _raise(error: BaseException):
    def raising(*_, **__):
        raise error

    return raising


def _half_written(tensors: dict, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ((weights, "save_file", _half_written), "No space left on device"),
        ((weights, "save_file", _raise(RuntimeError("no memory"))), "RuntimeError: no memory"),
        ((weights, "save_file", _raise(SafetensorError("I/O error"))), "SafetensorError: I/O error"),
        ((os, "replace", _raise(PermissionError(errno.EACCES, "Permission denied"))), "Permission denied"),
        ((os, "fsync", _raise(OSError(errno.EIO, "Input/output error"))), "Input/output error"),
    ],
)
def test_a_failed_save_leaves_what_was_there(tmp_path, small, monkeypatch, first, broken, message):
    model, report = small
    if not first:
        save(tmp_path / "a", model, report.structure)
    before = contents(tmp_path)
    monkeypatch.setattr(*broken)
    with pytest.raises(ArtifactError, match=message):
        save(tmp_path / "a", model, report.structure, extra={"second": True})
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ([] if first else ["a"])


def test_a_structure_of_another_model_is_not_saved(tmp_path, small):
    with pytest.raises(ArtifactError, match="stem.head is absent in the weights, and the structure asks for"):
        save(tmp_path / "a", Small(), small[1].structure)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": {"accuracy": float("nan")}}, "Out of range float values"),
        ({"extra": {"model": object()}}, "not JSON serializable"),
        ({"source": {"f": {1, 2}}}, "not JSON serializable"),
    ],
)
def test_facts_that_json_cannot_hold_are_refused(saved, small, options, message):
    model, report = small
    before = contents(saved.parent)
    with pytest.raises(ArtifactError, match=message):
        save(saved, model, report.structure, **options)
    assert contents(saved.parent) == before


def test_a_state_that_is_no_tensor_is_refused(tmp_path, small):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ArtifactError, match="_extra_state is a dict; only tensors"):
        save(tmp_path / "a", Odd(2, 2), small[1].structure)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_refused(tmp_path, small):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="Not a directory"):
        save(tmp_path / "file" / "a", small[0], small[1].structure)
    assert contents(tmp_path) == {"file": b"in the way"}


def test_only_artefacts_and_empty_directories_are_replaced(tmp_path, small):
    model, report = small
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"text")
    before = contents(tmp_path)
    for name in ("photos", "file"):
        with pytest.raises(ArtifactError, match=f"{name} exists and is not an artefact"):
            save(tmp_path / name, model, report.structure)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", model, report.structure)
    save(tmp_path / "deep" / "below", model, report.structure)
    assert contents(tmp_path / "empty") == contents(tmp_path / "deep" / "below")


def test_a_second_save_replaces_the_first(saved, small, image):
    model, report = small
    with torch.no_grad():
        model.left.weight.mul_(2)
    before = contents(saved)
    save(saved, model, report.structure)
    assert contents(saved) != before and {p.name for p in saved.parent.iterdir()} == {saved.name}
    assert torch.equal(load(saved, Small().eval())(image), model(image))

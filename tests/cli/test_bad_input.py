"""Bad input: one line that quotes it, exit code 2, nothing on stdout, nothing written."""

import json
import subprocess
import sys

import pytest
import torch

from norton_plugin.zoo import load_source

COMPRESS = ["compress", "demo:digits"]
MODELS = """
import torch
from norton_plugin.zoo import load_source

def half():
    return load_source("demo:digits").model.half()

def broken():
    model = load_source("demo:digits").model
    model.layer2.conv1.weight.data[3, 1, 0, 0] = float("nan")
    return model

def flat():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))

def empty():
    return torch.nn.Sequential(torch.nn.ReLU())

def text():
    return "a model"
"""


@pytest.fixture
def refused(norton, tmp_path, monkeypatch):
    (tmp_path / "cli_bad_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_bad_models", raising=False)

    def check(*arguments, write=True):
        answer = norton(*arguments, *(["-o", tmp_path / "out"] if write else []))
        assert answer.out == ""
        lines = [line for line in answer.err.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1
        assert answer.code == 2
        assert not (tmp_path / "out").exists()
        assert lines[0].startswith("error: ")
        return lines[0]

    return check


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--rank", "0"], "decomposition.rank is 0; expected a whole number from 1 to 4096"),
        (["--rank=-3"], "decomposition.rank is -3"),
        (["--rank", "5000"], "decomposition.rank is 5000"),
        (["--rank", "2.5"], "decomposition.rank is '2.5'"),
        (["--rank", "many"], "decomposition.rank is 'many'"),
        (["--rank-for", "layer1=0"], "decomposition.ranks['layer1'] is 0"),
        (["--rank-for", "layer1"], "--rank-for is 'layer1'; expected PATTERN=VALUE"),
        (["--rank-for", "layer9.*=2"], "pattern 'layer9.*' matches none of the model's"),
        (["--rank-for", "re:layer(=2"], "pattern 're:layer(' is not a valid regular expression"),
        (["--rank", "auto", "--target-nmse", "1.5"], "decomposition.target_nmse is 1.5"),
        (["--keep", "0"], "pruning.keep is 0.0; expected a number in (0, 1]"),
        (["--keep", "1.5"], "pruning.keep is 1.5"),
        (["--keep=-0.5"], "pruning.keep is -0.5"),
        (["--keep", "nan"], "pruning.keep is nan"),
        (["--keep", "half"], "pruning.keep is 'half'; expected a number in (0, 1]"),
        (["--keep-for", "conv9=0.5"], "pattern 'conv9' matches none"),
        (["--keep-for", "layer1=much"], "pruning.keeps['layer1'] is 'much'"),
        (["--keep", "0.5", "--round-to", "0"], "pruning.round_to is 0"),
        (["--keep", "0.5", "--round-to", "wide"], "pruning.round_to is 'wide'; expected a whole number from 1 to"),
        (
            ["--keep", "0.5", "--criterion", "taylor"],
            "pruning.criterion is 'taylor'; expected one of pabs, output, l2, random, vbd, csa",
        ),
        (["--rank", "2", "--include", "backbone"], "scope.include pattern 'backbone' matches none"),
        (["--rank", "2", "--exclude", "*.conv7"], "scope.exclude pattern '*.conv7' matches none"),
        (["--rank", "2", "--include", "fc"], "no layer is eligible"),
        (["--rank", "9"], "no layer is eligible: rank 9 needs more MACs than the dense convolution"),
        ([], "there is nothing to do: give --budget, --rank, --share, --components, --keep below 1, or a --recipe"),
        (["--level", "layer"], "there is nothing to do"),
        (["--level", "rows", "--rank", "2"], "decomposition.level is 'rows'; expected one of filter, cluster, layer"),
        (["--rank", "2", "--share", "0.3"], "decomposition.rank and decomposition.share contradict each other"),
        (["--components", "8"], "decomposition.components is 8, the number that filters share, but"),
        (["--level", "layer", "--components", "2.5"], "decomposition.components is '2.5'; expected a whole number"),
        (["--level", "layer", "--share", "much"], "decomposition.share is 'much'; expected a number in (0, 1]"),
        (["--level", "cluster", "--share", "0.3"], "but decomposition.clusters is not given; say how many clusters"),
        (["--share", "0.3", "--clusters", "4"], "decomposition.clusters is 4, but decomposition.level is 'filter'"),
        (["--level", "layer", "--components", "5000"], "5000 components are asked for layer1.conv1, which is exact at"),
        (["--layer", "layer1:share"], "--layer is 'layer1:share'; expected PATTERN:NAME=VALUE"),
        (["--layer", "layer1=2"], "--layer is 'layer1=2'; expected PATTERN:NAME=VALUE"),
        (["--layer", "layer1:rank=2,rank=3"], "--layer gives rank twice for 'layer1'"),
        (["--layer", "layer1:rnk=2"], "unknown setting decomposition.layers['layer1'].'rnk'; did you mean 'rank'?"),
        (["--layer", "layer1:components=8"], "decomposition.layers['layer1'].components is 8, the number that"),
        (["--layer", "layer9:rank=2"], "decomposition.layers pattern 'layer9' matches none of the model's"),
        (["--keep", "1"], "there is nothing to do"),
        (["--rank", "2", "--input-size", "3x16x16"], "the model does not run on the example inputs"),
        (["--rank", "2", "--input-size", "big"], "--input-size is 'big'"),
        (["--rank", "2", "--input-size", "0"], "input size 0 does not fit"),
        (["--rank", "2", "--num-classes", "0"], "num_classes is 0"),
        (["--rank", "2", "--pretrained"], "no pretrained weights of demo:digits"),
        (["--rank", "2", "--checkpoint", "nowhere.pth"], "checkpoint 'nowhere.pth' is not a file"),
        (["--rank", "2", "--calibration-data", "nowhere"], "'nowhere' is not a folder"),
        (["--rank", "2", "--images", "5"], "--images is given, but no images; give --data DIR too, or leave"),
        (["--rank", "2", "--memory", "1GiB"], "--memory is given, but no images; give --data DIR too, or leave"),
    ],
)
def test_option(refused, options, quoted):
    assert quoted in refused(*COMPRESS, *options)


@pytest.mark.parametrize(
    ("source", "quoted"),
    [
        ("digits", "'digits' is neither a directory nor a model source"),
        ("keras:vgg", "'keras'"),
        ("demo:letters", "'letters'"),
        ("python:cli_bad_models:none", "'none'"),
        ("python:cli_bad_models:text", "returned a str, expected a torch.nn.Module"),
        ("python:cli_bad_models:half", "example_inputs are torch.float32, the model's parameters torch.float16"),
        ("python:cli_bad_models:broken", "layer2.conv1.weight holds NaN or infinite values"),
        ("python:cli_bad_models:flat", "no layer is eligible"),
        ("python:cli_bad_models:empty", "the Sequential has no parameters"),
        (".", "is a directory without norton.json"),
    ],
)
def test_source(refused, source, quoted):
    assert quoted in refused("compress", source, "--rank", 2, "--input-size", "1x16x16")


@pytest.mark.parametrize(
    ("name", "text", "quoted"),
    [
        ("r.yaml", "decomposition: {rnk: 2}", "unknown setting decomposition.'rnk'; did you mean 'rank'?"),
        ("r.yaml", "decomposition: {rank: 0}", "decomposition.rank is 0"),
        ("r.yaml", "decomposition: [1", "is damaged"),
        ("r.json", "{", "is damaged"),
        ("r.yaml", "- 2", "expected a table of settings"),
        ("r.toml", "", "has the suffix '.toml'"),
        ("absent.yaml", None, "is not a file: it is not there"),
    ],
)
def test_recipe_file(refused, tmp_path, name, text, quoted):
    if text is not None:
        (tmp_path / name).write_text(text)
    line = refused(*COMPRESS, "--recipe", name)
    assert quoted in line
    assert name in line


def test_checkpoint_of_another_model(refused, tmp_path):
    torch.save(load_source("demo:digits", num_classes=3).model.state_dict(), tmp_path / "three.pth")
    assert "fc.weight (3, 128) for (10, 128)" in refused(*COMPRESS, "--rank", 2, "--checkpoint", "three.pth")


def test_output_that_is_not_an_artefact_is_left_alone(norton, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    answer = norton(*COMPRESS, "--rank", 2, "-o", tmp_path)
    assert answer.code == 2
    assert "exists and is not an artefact" in answer.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("damage", "quoted"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "it is truncated or was replaced"),
        (lambda d: (d / "norton.json").write_text("{"), "is damaged"),
        (lambda d: _edit(d, version=99), "has version 99"),
        (lambda d: _edit(d, structure={}), "does not match its hash"),
        (
            lambda d: _edit(d, source={"kind": "demo", "name": "digits", "kwargs": {"widths": [8, 8, 8]}}),
            "is not the one that was compressed",
        ),
        (lambda d: _edit(d, source=None), "does not say what built its model"),
        (lambda d: _edit(d, extra={}), "does not say what its images look like"),
    ],
)
def test_damaged_artefact(refused, norton, tmp_path, damage, quoted):
    assert norton(*COMPRESS, "--rank", 2, "-o", tmp_path / "small").code == 0
    damage(tmp_path / "small")
    assert quoted in refused("inspect", tmp_path / "small", write=False)


def _edit(directory, **changes):
    """Edits the manifest and leaves its hash out, as manifests of earlier releases do."""
    file = directory / "norton.json"
    data = {**json.loads(file.read_text()), **changes}
    del data["manifest_hash"]
    file.write_text(json.dumps(data))


def test_artefact_decides_its_own_shape(refused, norton, tmp_path):
    assert norton(*COMPRESS, "--rank", 2, "-o", tmp_path / "small").code == 0
    line = refused("inspect", tmp_path / "small", "--pretrained", "--num-classes", 3, write=False)
    assert "--pretrained, --num-classes cannot be changed" in line


@pytest.mark.parametrize(
    ("module", "arguments", "command"),
    [
        ("sklearn", ["demo", "-o", "out"], "pip install 'norton-plugin[demo]'"),
        ("timm", ["inspect", "timm:test_resnet"], "pip install 'norton-plugin[timm]'"),
        ("mmengine", ["evaluate", "demo:digits", "--data", "."], "pip install 'norton-plugin[timm]'"),
    ],
)
def test_missing_extra_names_the_pip_command(tmp_path, module, arguments, command):
    if module != "mmengine":
        pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    code = (
        f"import sys; sys.modules[{module!r}] = None; from norton_plugin.cli.app import run; sys.exit(run({arguments}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line == f"error: {module if module != 'sklearn' else 'scikit-learn'} is not installed; run: {command}"

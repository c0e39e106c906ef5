"""Values without sense and without bounds, and models that are no classifiers."""

import os

import pytest

FINETUNE = ["finetune", "demo:digits", "--data", "full", "-o", "out"]

CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["--threads", 4 * CORES + 1], f"a machine of {CORES} core"),
        (["--threads", "100000"], f"at most {4 * CORES}, 4 per core"),
        (["--threads", "9" * 5000], "--threads"),
        (["--workers", 4 * CORES + 1], f"at most {4 * CORES}"),
        (["--batch-size", "25600000"], "--batch-size"),
        (["--epochs", "1000000"], "--epochs"),
        (["--num-classes", "10000000"], "--num-classes"),
        (["--input-size", "1x32000x16"], "--input-size is '1x32000x16'"),
        (["--input-size", "9000"], "at most 67108864 numbers"),
        (["--input-size", "9" * 5000], "--input-size"),
        (["--input-size", "1e3"], "--input-size is '1e3'"),
        (["--input-size", "٣x٣"], "--input-size"),
        (["--seed", 2**32], "4294967295"),
        (["--lr", "1e400"], "lr is inf"),
        (["--lr", "nan"], "lr is nan"),
        (["--clip-grad", "nan"], "clip_grad is nan"),
    ],
)
def test_one_digit_too_many(norton, folder, monkeypatch, arguments, quoted):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")

    def build(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr("norton_plugin.cli.models.load_source", build)
    answer = norton(*FINETUNE, *arguments, "--json")
    assert answer.code == 2
    assert quoted in answer.error["message"]


def test_the_largest_number_of_threads_is_taken(norton):
    assert norton("inspect", "demo:digits", "--threads", 4 * CORES).code == 0
    assert norton("--threads", 4 * CORES + 1, "inspect", "demo:digits").code == 2


@pytest.mark.parametrize(
    ("models", "size", "quoted"),
    [
        ("demo:digits", "3x16x16", "does not run on an input of 3x16x16"),
        ("wide", "1x8x8", "returns shape (1, 8, 6, 6)"),
    ],
)
def test_a_model_that_is_no_classifier_of_such_images(norton, folder, models, size, quoted):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    if models == "wide":
        (folder / "cli_wide_model.py").write_text("import torch\nwide = lambda: torch.nn.Conv2d(1, 8, 3)\n")
        models = "python:cli_wide_model:wide"
    answer = norton("evaluate", models, "--input-size", size, "--data", "full", "--json")
    assert (answer.code, answer.error["type"]) == (2, "SourceError")
    assert quoted in answer.error["message"]

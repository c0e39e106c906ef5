"""``norton evaluate`` and ``norton finetune`` on a folder of images."""

import json
import shutil

import pytest
import torch

from norton_plugin.artifact import read_manifest
from norton_plugin.artifact.folder import LOCK
from norton_plugin.artifact.folder_lock import sole_writer
from norton_plugin.cli.models import open_model

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")


@pytest.fixture
def small(norton, tmp_path):
    assert norton("compress", "demo:digits", "--rank", 1, "--keep", 0.5, "-o", tmp_path / "small").code == 0
    return tmp_path / "small"


def test_evaluate_counts_right_answers(norton, small, digit_folder):
    answer = norton("evaluate", small, "--data", digit_folder / "test", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert (found["n"], found["classes"]) == (20, 10)

    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    opened, right = open_model(str(small)), 0
    for path in (digit_folder / "test").rglob("*.png"):
        image = (pil_to_tensor(Image.open(path))[None] / 255 - opened.preprocessing.mean[0]) / opened.preprocessing.std[
            0
        ]
        with torch.no_grad():
            right += int(opened.model(image).argmax()) == int(path.parent.name)
    assert found["top1"] == pytest.approx(100 * right / 20)


def test_fewer_folders_than_classes_are_warned_of(norton, small, digit_folder, tmp_path):
    for name in ("3", "7"):  # the model takes them for digits 0 and 1
        shutil.copytree(digit_folder / "test" / name, tmp_path / "two" / name)
    answer = norton("evaluate", small, "--data", tmp_path / "two")
    assert answer.code == 0
    assert "2 sub-folders, the model 10 classes" in answer.err.replace("\n", " ")


def test_finetune_writes_an_artefact_that_learned(norton, small, digit_folder, tmp_path):
    options = ["--data", digit_folder / "train", "--val", digit_folder / "test", "--epochs", 2, "--batch-size", 20]
    answer = norton("finetune", small, *options, "--no-flip", "-o", tmp_path / "tuned", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert [record["epoch"] for record in found["history"]] == [1, 2]
    assert (tmp_path / "tuned" / "recipe.yaml").read_text() == (small / "recipe.yaml").read_text()

    before, after = read_manifest(small), read_manifest(tmp_path / "tuned")
    assert after.structure == before.structure
    assert after.report == before.report
    old, new = open_model(str(small)).model, open_model(str(tmp_path / "tuned")).model
    assert not torch.equal(old.layer1.conv1.head, new.layer1.conv1.head)
    again = json.loads(norton("evaluate", tmp_path / "tuned", "--data", digit_folder / "test", "--json").out)
    assert again["top1"] == found["last_top1"]


def test_resume_ends_where_one_run_ends(norton, small, digit_folder, tmp_path, monkeypatch):
    options = ["--data", digit_folder / "train", "--epochs", 2, "--batch-size", 20]
    assert norton("finetune", small, *options, "-o", tmp_path / "whole").code == 0

    def stop(record, epochs):
        raise KeyboardInterrupt

    monkeypatch.setattr("norton_plugin.cli.finetune._line", stop)
    ended = norton("finetune", small, *options, "-o", tmp_path / "parts")
    assert ended.code == 130
    assert f"kept in {tmp_path / 'parts'}.work; the same command with --resume goes on" in ended.err
    assert not (tmp_path / "parts").exists()
    monkeypatch.undo()
    assert norton("finetune", small, *options, "-o", tmp_path / "parts", "--resume").code == 0
    whole, parts = (open_model(str(tmp_path / name)).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_dense_source_with_a_teacher(norton, digit_folder, tmp_path):
    torch.save(open_model("demo:digits", seed=3).model.state_dict(), tmp_path / "teacher.pth")
    options = [
        "--data",
        digit_folder / "train",
        "--epochs",
        1,
        "--batch-size",
        20,
        "--teacher",
        tmp_path / "teacher.pth",
    ]
    assert norton("finetune", "demo:digits", *options, "-o", tmp_path / "dense").code == 0
    assert read_manifest(tmp_path / "dense").structure["modules"] == []
    assert norton("compress", tmp_path / "dense", "--rank", 1, "-o", tmp_path / "small").code == 0


def test_the_level_chooses_the_optimizer_and_the_user_wins(norton, digit_folder, tmp_path):
    (tmp_path / "shared.yaml").write_text("decomposition: {level: layer, share: 0.4}")
    small = tmp_path / "small"
    assert norton("compress", "demo:digits", "--recipe", tmp_path / "shared.yaml", "-o", small).code == 0
    command = ["finetune", small, "--data", digit_folder / "train", "--epochs", 2, "--batch-size", 20]
    chosen = norton(*command, "-o", tmp_path / "a")
    assert (chosen.code, chosen.err.count("error")) == (0, 0)
    line = "decomposed at the layer level: AdamW, learning rate 0.005, momentum 0.5, weight decay 0.001, "
    assert f"{line}warm-up 0.3 epochs" in " ".join(chosen.out.split())
    given = norton(*command, "--optimizer", "sgd", "--lr", 0.02, "--warmup-epochs", 1, "-o", tmp_path / "b", "--json")
    assert given.code == 0, given.err
    settings = json.loads(given.out)["settings"]
    assert [settings[key] for key in ("optimizer", "lr", "weight_decay", "warmup_epochs")] == ["SGD", 0.02, 5e-4, 1.0]
    assert read_manifest(tmp_path / "b").extra["finetune"]["lr"] == 0.02
    dense = norton("finetune", "demo:digits", *command[2:], "-o", tmp_path / "c", "--json")
    assert dense.code == 0, dense.err
    settings = json.loads(dense.out)["settings"]
    assert [settings[key] for key in ("optimizer", "lr", "weight_decay", "warmup_epochs")] == ["SGD", 0.01, 5e-4, 0.0]


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (["--epochs", 0], "epochs is 0"),
        (["--lr", 0], "lr is 0"),
        (["--optimizer", "Adagrad"], "optimizer is 'Adagrad'"),
        (["--teacher", "nowhere.pth"], "--teacher 'nowhere.pth' is not a file"),
        (["--val", "nowhere"], "'nowhere' is not a folder"),
    ],
)
def test_bad_input(norton, digit_folder, tmp_path, options, quoted):
    answer = norton("finetune", "demo:digits", "--data", digit_folder / "train", "-o", tmp_path / "out", *options)
    assert (answer.code, answer.out) == (2, "")
    assert quoted in answer.err
    assert not (tmp_path / "out").exists()


def test_folders_of_different_classes(norton, digit_folder, tmp_path):
    odd = tmp_path / "val"
    odd.mkdir()
    (odd / "seven").symlink_to(digit_folder / "test" / "7")
    answer = norton("finetune", "demo:digits", "--data", digit_folder / "train", "--val", odd, "-o", tmp_path / "out")
    assert answer.code == 2
    assert "have different classes" in answer.err


def test_two_runs_do_not_train_in_one_folder(norton, digit_folder, tmp_path):
    options = ["--data", digit_folder / "train", "--epochs", 1, "--batch-size", 20, "-o", tmp_path / "tuned"]
    work = tmp_path / "tuned.work"
    with sole_writer(work):
        answer = norton("finetune", "demo:digits", *options)
        assert answer.code == 2
        assert f"another process is writing to {work}; wait until it is done, or write elsewhere" in answer.err
        assert [path.name for path in work.iterdir()] == [LOCK] and not (tmp_path / "tuned").exists()
    assert norton("finetune", "demo:digits", *options).code == 0
    assert not (work / LOCK).exists()


def test_a_run_to_go_on_with_that_is_not_there_is_told(norton, digit_folder, tmp_path):
    options = ["--data", digit_folder / "train", "--epochs", 1, "--batch-size", 20, "-o", tmp_path / "tuned"]
    told = f"warning: {tmp_path / 'tuned.work'} holds no checkpoint to go on from: training starts at the first epoch"
    assert told in norton("finetune", "demo:digits", *options, "--resume").err
    assert "holds no checkpoint" not in norton("finetune", "demo:digits", *options, "--resume").err


@pytest.mark.parametrize("size", [[], ["--input-size", 72]])  # decoded once, and one by one
def test_images_that_cannot_be_read_are_left_out_and_named(norton, digit_folder, tmp_path, size):
    data = shutil.copytree(digit_folder, tmp_path / "data")
    damaged = [sorted((data / split).rglob("*.png"))[3] for split in ("train", "test")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    answer = norton("evaluate", "demo:digits", "--data", data / "test", *size, "--json")
    assert (answer.code, json.loads(answer.out)["n"]) == (0, 19)
    assert damaged[1].name in "".join(answer.err.split())
    shutil.copytree(data / "test", tmp_path / "whole")
    (tmp_path / "whole" / damaged[1].relative_to(data / "test")).unlink()
    whole = json.loads(norton("evaluate", "demo:digits", "--data", tmp_path / "whole", *size, "--json").out)
    assert {key: whole[key] for key in ("top1", "top5", "n")} == {
        key: json.loads(answer.out)[key] for key in ("top1", "top5", "n")
    }

    single = norton("evaluate", "demo:digits", "--data", data / "test", "--batch-size", 1, *size, "--json")
    assert (single.code, json.loads(single.out)["n"]) == (0, 19)

    options = ["--data", data / "train", "--val", data / "test", "--epochs", 1, "--batch-size", 20, "--no-flip", *size]
    answer = norton("finetune", "demo:digits", *options, "-o", tmp_path / "tuned")
    assert answer.code == 0
    assert all(path.name in "".join(answer.err.split()) for path in damaged)

"""The command line, run inside the test's process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from norton_plugin.cli.app import run


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def norton(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs ``norton ARGUMENTS``."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 20 test digits as PNG files, one folder per class."""
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'norton-plugin[demo]'")
    from PIL import Image

    from norton_plugin.zoo.demo import load_digits

    data, root = load_digits(), tmp_path_factory.mktemp("digits")
    splits = {"train": (data.train_images, data.train_labels, 40), "test": (data.test_images, data.test_labels, 20)}
    for split, (images, labels, count) in splits.items():
        for digit in range(10):
            (root / split / str(digit)).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(images[index, 0].numpy()).save(root / split / str(int(labels[index])) / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded images of tests do not land in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

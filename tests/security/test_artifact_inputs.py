"""What an artefact says about the images of its model, before a tensor of that size is made."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from artefacts import in_child, rewrite

from norton_plugin.artifact.stored_inputs import LARGEST_SIDE, MOST_INPUTS
from norton_plugin.cli.models import Opened, check_directory, open_model, save_model
from norton_plugin.errors import ArtifactError

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def opened() -> Opened:
    return open_model("demo:digits")


@pytest.fixture
def target(tmp_path: Path, opened: Opened) -> Path:
    return save_model(tmp_path / "small", opened.model, opened, recipe=None, report=None, extra={})


def test_what_was_saved_is_opened(target: Path, opened: Opened) -> None:
    again = open_model(str(target))
    assert again.preprocessing == opened.preprocessing
    assert [x.shape for x in again.example_inputs] == [x.shape for x in opened.example_inputs]
    assert torch.equal(again.model(again.example_inputs[0]), opened.model(again.example_inputs[0]))
    check_directory(target)


def _images(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["extra"]["preprocessing"].update(fields)


EDITS = [
    *[
        _images(input_size=size)
        for size in (
            [3, 10**6, 10**6],
            [10**9, 1, 1],
            [LARGEST_SIDE, LARGEST_SIDE, 3],
            [1, 0, 8],
            [1, -8, 8],
            [1, 8.0, 8],
            [1, True, 8],
            [1, "8", 8],
            [8, 8],
            [1, 1, 1, 1, 1],
            [1, [8], 8],
            8,
            "188",
            None,
            {"0": 1},
        )
    ],
    *[_images(mean=mean) for mean in ([], 0.5, ["0.5"], [None], [True], [1e30], [[0.5]], "0", None)],
    *[_images(std=std) for std in ([0], [-1.0], [1e-30], [], None, ["1"])],
    *[_images(crop_pct=share) for share in (0, -1, 1e-9, 1e9, "1", None, True, [1.0])],
    *[_images(interpolation=name) for name in ("__class__", "", 1, None, ["bilinear"])],
    _images(other=1),
    _images(__class__="x"),
    lambda d: d["extra"]["preprocessing"].pop("mean"),
    lambda d: d["extra"].update(preprocessing=[]),
    lambda d: d["extra"].update(preprocessing={}),
    lambda d: d["extra"].pop("preprocessing"),
    lambda d: d.update(extra=None),
    lambda d: d.update(source=None),
    lambda d: d.update(source={}),
    *[
        lambda d, n=number: d["extra"].update(inputs=n)
        for number in (0, -1, MOST_INPUTS + 1, 10**9, 1.0, "1", True, None, [1])
    ],
]


@pytest.mark.parametrize("change", EDITS)
def test_damaged_facts_are_refused(target: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rewrite(target, change)
    with pytest.raises(ArtifactError):
        open_model(str(target))


def test_nothing_large_is_made_first(target: Path) -> None:
    """16 inputs of 400 MB each, no single number of which is out of its range."""

    def attempt() -> None:
        with pytest.raises(ArtifactError, match="at most 134217728 numbers in all inputs"):
            open_model(str(target))

    rewrite(target, _images(input_size=[1, 10_000, 10_000]))
    rewrite(target, lambda data: data["extra"].update(inputs=16))
    assert in_child(attempt, memory=300 * MEGABYTE) == 0


def test_a_directory_to_write_to_later_is_checked_now(target: Path, tmp_path: Path) -> None:
    check_directory(tmp_path / "absent")
    (target / "model.safetensors").write_bytes(b"short")
    for path in (target, tmp_path, tmp_path / "nul\0"):
        with pytest.raises(ArtifactError):
            check_directory(path)

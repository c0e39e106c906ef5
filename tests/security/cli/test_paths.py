"""Paths that cannot be used are refused before any work."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from norton_plugin.cli.paths import existing_file
from norton_plugin.errors import SourceError

LONG = "x" * 300
READ_FILE = {"": "is empty", "nowhere": "not there", "full": "is a folder", "file/sub": "a part of the path is a file"}
READ_FILE |= {"loop": "in a circle", "dangling": "not there", LONG: "too long", "a\0b": "NUL", "pipe": "a device, pipe"}
READ_FOLDER = {**READ_FILE, "file": "is a file"}
del READ_FOLDER["full"]
ARTEFACT = {"": "is empty", "file": "is a file", "file/sub": "a part of the path is a file", "loop": "in a circle"}
ARTEFACT |= {LONG: "too long", "y" * 250: "250 bytes", "a\0b": "NUL", ".": "current folder", "..": "above it"}
ARTEFACT |= {"/": "above it", "full": "is not an artefact", "/proc/x": "nothing can be written"}
WORK = {key: ARTEFACT[key] for key in ("", "file", "file/sub", "loop", LONG, "a\0b", "/proc/x")}
WORK |= {"out": "is the output", "out/work": "is the output", "\udcff": "not UTF-8"}
CONFIG = {key: value for key, value in WORK.items() if "out" not in key and key not in ("file", "file/sub", "\udcff")}
CONFIG = {f"{key}.py" if key else key: value for key, value in CONFIG.items()}
CONFIG |= {"there.py": "is already there", "nowhere/c.py": "a folder that is not there", "config": "end in one of"}
EXPORTED = {"": "it is empty", "full": "is a folder", "a.txt": "should end in", "loop": "in a circle"}
EXPORTED |= {"nowhere/a.onnx": "a folder that is not there", "/proc/a.onnx": "nothing can be written"}
DEMO = {"file": "is a file", "loop": "in a circle", "/proc/x": "nothing can be written", "holds": "is not an artefact"}
COMPRESS = ["compress", "demo:digits", "--rank", "1", "-o", "out"]
FINETUNE = ["finetune", "demo:digits", "--data", "full", "-o", "out"]


@pytest.mark.parametrize(
    ("arguments", "option", "values"),
    [
        (["inspect", "demo:digits"], "--checkpoint", READ_FILE),
        (COMPRESS, "--recipe", READ_FILE),
        (COMPRESS, "--calibration-data", READ_FOLDER),
        (["compress", "demo:digits", "--rank", "1"], "-o", ARTEFACT),
        (["evaluate", "demo:digits"], "--data", READ_FOLDER),
        (["finetune", "demo:digits", "-o", "out"], "--data", READ_FOLDER),
        (FINETUNE, "--val", READ_FOLDER),
        (FINETUNE, "--teacher", READ_FILE),
        (FINETUNE, "--work-dir", WORK),
        (["finetune", "demo:digits", "--data", "full"], "-o", ARTEFACT),
        (["export", "demo:digits"], "-o", EXPORTED),
        (["export-config", "file", "file"], "-o", CONFIG),
        (["demo"], "-o", DEMO),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value if isinstance(value, str) else None,
)
def test_bad_paths_are_refused_before_any_work(norton, folder, no_work, arguments, option, values):
    if arguments[0] in ("evaluate", "finetune", "export-config", "demo"):
        pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    (folder / "there.py").write_text("")
    (folder / "holds" / "half").mkdir(parents=True)
    (folder / "holds" / "half" / "notes").write_text("mine")
    (folder / "loop.py").symlink_to("loop.py")
    before = sorted(folder.rglob("*"))
    for value, quoted in values.items():
        answer = norton(*arguments, option, value, "--json")
        assert answer.code == 2, (value, answer.err)
        assert quoted in answer.error["message"], (value, answer.err)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "source", ["", "a\0b", "x" * 300, "loop", "mmdet:nowhere.py", "python:\0:x", "timm:" + "x" * 1000]
)
def test_bad_sources(norton, folder, source):
    if source.startswith("mmdet"):
        pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")
    if source.startswith("timm"):
        pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    answer = norton("inspect", source, "--json")
    assert (answer.code, answer.error["type"]) == (2, "SourceError")


@contextmanager
def _another_user():
    """Rights as a user other than root has them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_read(norton, no_work, mode):
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        os.chmod(parent, 0o755)
        private = Path(parent, "private")
        private.mkdir()
        private.chmod(mode)
        with _another_user():
            answer = norton("evaluate", "demo:digits", "--data", private, "--json")
        private.chmod(0o700)
    assert (answer.code, answer.error["type"]) == (2, "SourceError")
    assert "you may not read it" in answer.error["message"]


def test_a_folder_that_may_not_be_written(norton, no_work):
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        os.chmod(parent, 0o555)
        with _another_user():
            answer = norton("compress", "demo:digits", "--rank", 1, "-o", Path(parent, "new", "small"), "--json")
        os.chmod(parent, 0o700)
    assert (answer.code, answer.error["type"]) == (2, "ArtifactError")
    assert "you may not write there" in answer.error["message"]


@pytest.mark.parametrize(
    ("name", "text", "quoted"),
    [
        ("bomb.yaml", "a: &a [x, x]\nb: &b [*a, *a]\npruning: {keep: *b}", "the alias *a"),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("deep.yaml", "[" * 5_000, "nested too deeply"),
        ("large.yaml", "# " + "x" * 2**20, "larger than"),
        ("bytes.yaml", b"\xff\xfe\x00", "is damaged"),
        ("nan.json", '{"pruning": {"keep": NaN}}', "pruning.keep is nan"),
        ("huge.json", '{"pruning": {"keep": 1e400}}', "pruning.keep is inf"),
    ],
)
def test_bad_recipes(norton, folder, no_work, name, text, quoted):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    answer = norton(*COMPRESS, "--recipe", name, "--json")
    assert (answer.code, answer.error["type"]) == (2, "RecipeError")
    assert quoted in answer.error["message"]


def test_an_image_that_is_a_dangling_link(norton, folder):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    (folder / "data" / "a").mkdir(parents=True)
    (folder / "data" / "a" / "1.png").symlink_to("nowhere")
    answer = norton("evaluate", "demo:digits", "--data", "data", "--json")
    assert (answer.code, answer.error["type"]) == (2, "SourceError")
    assert "1.png" in answer.error["message"]


def test_an_option_check_names_the_option():
    with pytest.raises(SourceError, match="CONFIG '.*nowhere' is not a file: it is not there"):
        existing_file(SimpleNamespace(opts=["config"], metavar="CONFIG", name="config"), Path("nowhere"))

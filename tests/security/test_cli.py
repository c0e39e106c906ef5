"""Attacks on the command line: wrong options and paths, signals, closed and full outputs, values without bounds."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from norton_plugin.cli import signals
from norton_plugin.cli.app import run
from norton_plugin.cli.output import one_line
from norton_plugin.errors import SourceError

ERROR_KEYS = {"type", "message", "exit_code"}
SLOW_MODEL = """
import multiprocessing, pathlib, time
import torch


class Slow(torch.nn.Module):
    input_size, mean, std = (1, 16, 16), (0.5,), (0.5,)

    def __init__(self, cleanup):
        super().__init__()
        self.cleanup = cleanup
        self.conv = torch.nn.Conv2d(1, 8, 3)

    def forward(self, x):
        if x.shape[0] > 1 or self.cleanup:
            workers = [child.pid for child in multiprocessing.active_children()]
            pathlib.Path("ready.part").write_text(" ".join(map(str, workers)))
            pathlib.Path("ready.part").rename("ready")
            try:
                time.sleep(60)
            finally:
                time.sleep(self.cleanup)
        return self.conv(x).mean((2, 3))


def plain():
    return Slow(0)


def at_once():
    return Slow(0.01)


def slow_to_clean_up():
    return Slow(60)


def leaves():
    raise SystemExit(0)
"""


class Answer:
    """What a command line in this process came to."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def error(self):
        """The JSON object on stdout, checked against the line on stderr."""
        (told,) = json.loads(self.out).values()
        assert set(told) == ERROR_KEYS
        assert told["exit_code"] == self.code
        lines = [line for line in self.err.splitlines() if not line.startswith("warning: ")]
        assert lines == [f"error: {told['message']}"]
        return told


@pytest.fixture
def norton(capsys):
    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a file, folders, links, a pipe and the models above in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_slow_models", raising=False)
    (tmp_path / "cli_slow_models.py").write_text(SLOW_MODEL)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full" / "sub").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Makes building a model a failure that no test mistakes for a refusal."""

    def refuse(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr("norton_plugin.cli.models.open_model", refuse)
    monkeypatch.setattr("norton_plugin.demo.run.load_digits", refuse)


# --- errors as JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "quoted"),
    [
        (["inspect", "demo:digits", "--rnk", "2"], "UsageError", "--rnk"),
        (["inspect"], "UsageError", "SOURCE"),
        (["inspect", "demo:digits", "--num-classes", "ten"], "UsageError", "--num-classes"),
        (["inspect", "demo:digits", "--threads"], "UsageError", "--threads"),
        (["inspct"], "UsageError", "inspct"),
        (["--rnk"], "UsageError", "--rnk"),
        (["inspect", "demo:digits", "more"], "UsageError", "more"),
        (["inspect", "demo:letters"], "SourceError", "'letters'"),
        (["inspect", "demo:digits", "--include", "nothing"], "RecipeError", "'nothing'"),
        (["compress", "demo:digits", "-o", "/"], "ArtifactError", "'/'"),
        (["export-config", "nowhere.py", "nowhere.pth"], "SourceError", "'nowhere.py'"),
    ],
)
def test_errors_are_json_where_it_is_asked_for(norton, arguments, kind, quoted):
    plain = norton(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert quoted in plain.err
    for answer in (norton("--json", *arguments), norton(*arguments, "--json")):
        # An option without its value takes the next word, whatever it is.
        if arguments[-1] != "--threads" or answer.err == plain.err:
            assert answer.err == plain.err
        assert (answer.code, answer.error["type"]) == (2, kind)
        assert quoted in answer.error["message"]


def test_json_behind_a_bare_double_dash_is_no_option(norton):
    answer = norton("inspect", "--", "--json")
    assert (answer.code, answer.out) == (2, "")


@pytest.mark.parametrize(
    ("raised", "kind", "message", "code"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError", "ZeroDivisionError: division by zero (-v", 1),
        (RuntimeError(), "RuntimeError", "RuntimeError (-v shows where)", 1),
        (MemoryError(), "MemoryError", "out of memory", 1),
        (KeyboardInterrupt(), "Interrupted", "interrupted", 130),
        (SystemExit(0), "SystemExit", "ended the program (exit 0)", 1),
    ],
)
def test_failures_are_json_as_well(norton, monkeypatch, raised, kind, message, code):
    def fail(*_):
        raise raised

    monkeypatch.setattr("norton_plugin.insight.inspection.count_cost", fail)
    answer = norton("inspect", "demo:digits", "--json")
    assert (answer.code, answer.error["type"]) == (code, kind)
    assert message in answer.error["message"]
    plain = norton("inspect", "demo:digits")
    assert (plain.code, plain.out, plain.err) == (code, "", answer.err)


def test_a_model_cannot_end_the_program_with_success(norton, folder):
    answer = norton("inspect", "python:cli_slow_models:leaves", "--json")
    assert (answer.code, answer.error["type"]) == (1, "SystemExit")


def test_numbers_that_json_lacks_become_null(norton, monkeypatch):
    monkeypatch.setattr("norton_plugin.cli.inspect.asdict", lambda found: {"macs": float("nan"), "x": (1.5, -1e999)})
    answer = norton("inspect", "demo:digits", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert (found["macs"], found["x"]) == (None, [1.5, None])


def test_messages_are_one_line_without_control_characters():
    assert one_line("a\nb\t c\x1b]0;title\x07 \udcff \u202e") == "a b c\\x1b]0;title\\x07 \\udcff \\u202e"
    assert one_line("ü😀") == "ü😀"
    assert one_line("x" * 100_000) == "x" * 996 + " ..."


def test_brackets_in_names_are_no_markup(norton, folder):
    answer = norton("inspect", "timm:[/x]", "--json")
    assert "[/x]" in answer.error["message"]
    assert norton("compress", "demo:digits", "--rank", 1, "-o", "small[b]er").code == 0
    answer = norton("inspect", "small[b]er")
    assert answer.code == 0
    assert answer.out.startswith("small[b]er")


# --- paths ------------------------------------------------------------------------------------------------------------

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


# --- bounds -----------------------------------------------------------------------------------------------------------

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


# --- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def _running(folder, *arguments):
    """A command in a session of its own, with a folder of its own for whatever is temporary."""
    scratch = folder / "scratch"
    scratch.mkdir()
    places = {"TMPDIR": scratch, "XDG_CACHE_HOME": folder / "cache", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
    environment = {**os.environ, **{key: str(place) for key, place in places.items()}}
    command = [sys.executable, "-m", "norton_plugin", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "ready").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _check_clean(folder, process, number):
    """Everything that a command leaves behind which a signal ended."""
    out, err = process.communicate(timeout=60)
    answer = Answer(process.returncode, out, err)
    assert answer.code == 128 + number
    assert answer.error["type"] == "Interrupted"
    expected = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert answer.error["message"] == expected
    assert "Traceback" not in err
    assert list((folder / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_command_in_order(folder, number):
    with _running(folder, "inspect", "python:cli_slow_models:at_once", "--json") as process:
        process.send_signal(number)
        _check_clean(folder, process, number)


@pytest.mark.parametrize("to", [os.killpg, pytest.param(os.kill, marks=pytest.mark.slow)])
def test_processes_that_load_images_end_too(folder, to):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    from PIL import Image

    for name in "ab":
        (folder / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (16, 16), i).save(folder / "data" / name / f"{i}.png")
    options = [
        "--input-size",
        "1x16x16",
        "--data",
        "data",
        "--batch-size",
        "2",
        "--workers",
        "2",
        "-o",
        "out",
        "--json",
    ]
    with _running(folder, "finetune", "python:cli_slow_models:plain", *options) as process:
        workers = [Path("/proc", pid) for pid in (folder / "ready").read_text().split()]
        assert len(workers) == 2
        assert list((folder / "scratch").iterdir()) != []
        to(process.pid, signal.SIGTERM)
        _check_clean(folder, process, signal.SIGTERM)
        assert not any(worker.exists() for worker in workers)
    assert not (folder / "out").exists()


def test_a_second_signal_does_not_wait_for_cleaning_up(folder):
    with _running(folder, "inspect", "python:cli_slow_models:slow_to_clean_up") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None  # it cleans up
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - start < 30
    assert (process.returncode, out) == (143, "")
    assert "Traceback" not in err


def _send_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python's handler runs between two of its instructions


def test_the_same_request_twice_is_one(monkeypatch):
    monkeypatch.setattr(signals.os, "_exit", lambda code: pytest.fail(f"ended at once with {code}"))
    before = signal.getsignal(signal.SIGTERM)
    with signals.interruptible() as told:
        with pytest.raises(KeyboardInterrupt), told.while_working():
            _send_itself(signal.SIGTERM)
        _send_itself(signal.SIGTERM)
    assert told.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interruptible() as told, told.while_working():
            _send_itself(signal.SIGHUP)
        assert told.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_half_written_images_are_removed(folder, monkeypatch):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    from PIL import Image

    from norton_plugin.mm import pack_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "data" / "a").mkdir(parents=True)
    Image.new("L", (16, 16)).save(folder / "data" / "a" / "1.png")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(folder / "data")
    assert [path for path in (folder / "cache").rglob("*") if path.is_file()] == []


# --- closed and full outputs ------------------------------------------------------------------------------------------


def _shell(folder, line):
    """A line of bash in which ``norton`` is the command under test; the last line of stdout is its exit code."""
    script = f'norton() {{ "{sys.executable}" -m norton_plugin "$@"; }}\n{line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder, timeout=120)


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "inspect demo:digits", pytest.param("inspect demo:digits --json", marks=pytest.mark.slow)],
)
def test_a_reader_that_has_gone(folder, command):
    # The reader is gone before anything is written: the writer waits for that.
    answer = _shell(folder, f"{{ sleep 0.5; norton {command}; }} | true; echo ${{PIPESTATUS[0]}}")
    assert (answer.stdout, answer.stderr) == ("141\n", "")


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "inspect demo:digits", pytest.param("inspect demo:digits --json", marks=pytest.mark.slow)],
)
def test_a_full_device(folder, command):
    answer = _shell(folder, f"norton {command} > /dev/full; echo $?")
    assert answer.stdout == "1\n"
    assert answer.stderr == (
        "error: stdout cannot be written: No space left on device; redirect it to a file, or to /dev/null\n"
    )


@pytest.mark.parametrize("command", ["--help", "compress demo:digits --rank 1 -o small", "inspect nothing --json"])
def test_a_closed_stdout_is_told_before_any_work(folder, command):
    answer = _shell(folder, f"norton {command} >&-; echo $?")
    assert answer.stdout == "1\n"
    assert answer.stderr == "error: stdout cannot be written: it is closed; redirect it to a file, or to /dev/null\n"
    assert not (folder / "small").exists()


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&- <&-"])
def test_remarks_that_nobody_hears_stop_no_work(folder, where):
    answer = _shell(folder, f"norton compress demo:digits --rank 1 -o small --json {where}; echo $? >&2")
    assert answer.stderr == "0\n"
    assert json.loads(answer.stdout)["artifact"] == "small"
    assert json.loads((folder / "small" / "norton.json").read_text())["format"]


def test_no_file_gets_a_standard_number():
    code = (
        "import os\nfrom norton_plugin.cli.streams import reserve_descriptors\nreserve_descriptors()\n"
        "file = open('/dev/zero'); os._exit(file.fileno())"
    )
    answer = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code])
    assert answer.returncode > 2


def test_an_option_check_names_the_option():
    from types import SimpleNamespace

    from norton_plugin.cli.paths import existing_file

    with pytest.raises(SourceError, match="CONFIG '.*nowhere' is not a file: it is not there"):
        existing_file(SimpleNamespace(opts=["config"], metavar="CONFIG", name="config"), Path("nowhere"))

"""What is printed can be read in narrow and in wide terminals, and has one width in files."""

import io
import re
import sys

import pytest

from norton_plugin import environment
from norton_plugin.cli import demo
from norton_plugin.cli.app import run
from norton_plugin.cli.output import Output
from norton_plugin.demo import CompressedResult, DemoResult, DenseResult

COMMANDS = [
    "inspect",
    "compress",
    "evaluate",
    "finetune",
    "deploy",
    "bench",
    "export",
    "report",
    "compare",
    "cam",
    "export-config",
    "doctor",
    "demo",
]
WIDTHS = pytest.mark.parametrize("width", [40, 80, 200])


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True

    @property
    def lines(self):
        """What was on each line, one after the other where lines were overwritten."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r\n?", "\n", text)
        return [line.rstrip() for line in text.split("\n")]


@pytest.fixture
def terminal(monkeypatch):
    """Runs ``norton ARGUMENTS`` in a terminal of so many columns, and checks what no output may have."""

    def call(width, *arguments):
        stdout, stderr = Terminal(), Terminal()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        code = run([str(argument) for argument in arguments])
        for line in [*stdout.lines, *stderr.lines]:
            assert len(line) <= width or " " not in line.strip(), line  # a word longer than a line stays whole
            assert "\N{HORIZONTAL ELLIPSIS}" not in line, line
            assert not re.fullmatch(r"\W*\w\W*", line), line  # a column squeezed to a letter
        return code, stdout.lines, stderr.lines

    return call


@pytest.mark.parametrize("command", [None, *COMMANDS])
@pytest.mark.parametrize("width", [40, 60, 79, 80, 120, 200])
def test_help_names_every_option_whole(terminal, norton, monkeypatch, width, command):
    words = [command, "--help"] if command else ["--help"]
    monkeypatch.delenv("COLUMNS", raising=False)
    options = set(re.findall(r"--[a-z-]+", norton(*words).out))
    code, lines, _ = terminal(width, *words)
    assert code == 0
    text = "\n".join(lines)
    assert {"--json", "--threads", "--help"} <= options
    assert options == set(re.findall(r"--[a-z-]+", text))
    if command is None:
        assert all(name in text for name in COMMANDS)
    if command == "finetune":
        assert "Training" in text and "Distillation" in text and "by default" in " ".join(text.split())


@WIDTHS
def test_inspect(terminal, width):
    code, lines, _ = terminal(width, "inspect", "demo:digits")
    text = "\n".join(lines)
    assert code == 0
    assert "layer3.downsample.0" in text and "2.36 M" in text and "up to" in text
    if width == 40:
        assert "layer3.conv2" in lines  # a line of its own, its numbers below
        assert "kind Conv2d, kernel 3x3, in 128," in text
        assert "M up to 562" in text
    else:
        (row,) = [line.split() for line in lines if line.startswith("layer3.conv2 ")]
        assert row[-3:] == ["8", "562", "yes"]
    assert ("not shown at this width" in text) == (width == 80)
    assert "10 layers can be decomposed and hold 97.2 %" in " ".join(text.split())


@WIDTHS
def test_curves(terminal, width):
    code, lines, _ = terminal(width, "inspect", "demo:digits", "--curve", "--layer", "layer1", "--layer", "fc")
    assert code == 0
    text = "\n".join(lines)
    assert "layer1.conv1 and 1 of the same shape" in text and "Conv2d 3x3 32 -> 32, 2.36 M MACs" in text
    if width > 40:
        (row,) = [" ".join(line.split()) for line in lines if line.startswith("rank 7 ")]
        assert row == "rank 7 92.4 % 121 91.9 % 176 87.8 % 44 91.7 %"
        assert any(" ".join(line.split()) == "7/8 of the MACs 8 86.2 %" for line in lines)
    else:
        assert "rank 7" in lines and "  filter: MACs 92.4 %," in text


@WIDTHS
def test_compress(terminal, tmp_path, width):
    code, lines, notes = terminal(
        width, "compress", "demo:digits", "--rank", 2, "--keep", 0.5, "-o", tmp_path / "small"
    )
    assert code == 0
    text = "\n".join(lines)
    assert "layer3.downsample.0" in text and "92.3 %" in text
    assert "model-output" in text  # the reason in words may be folded within its column
    assert any(str(tmp_path / "small" / "recipe.yaml") in line for line in lines)  # whole, for copying
    assert "random weights" in " ".join(" ".join(notes).split())
    if width > 40:
        (row,) = [line for line in lines if line.startswith("layer3.conv2 ")]
        assert "0.711" in row and "-93.9 %" in row


@WIDTHS
def test_evaluate_and_finetune(terminal, digit_folder, tmp_path, width):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    code, lines, _ = terminal(width, "evaluate", "demo:digits", "--data", digit_folder / "test")
    assert code == 0
    assert "(20 images of 10 classes," in " ".join(" ".join(lines).split())
    options = ["--data", digit_folder / "train", "--epochs", 1, "-o", tmp_path / "tuned"]
    code, lines, notes = terminal(width, "finetune", "demo:digits", *options)
    assert code == 0
    assert any(line.startswith("epoch 1/1: loss ") for line in notes)
    assert any(str(tmp_path / "tuned") in line for line in lines)


@WIDTHS
def test_doctor(terminal, monkeypatch, width):
    findings = [
        environment.Finding("python", "3.11.7", "ok"),
        environment.Finding(
            "mmcv", "2.2.0, but import mmcv fails (ModuleNotFoundError: x)", "wrong", "pip install 'mmcv<2'"
        ),
    ]
    monkeypatch.setattr(environment, "diagnose", lambda: findings)
    code, lines, _ = terminal(width, "doctor")
    assert code == 1
    assert lines[0] == "ok      python 3.11.7"
    assert "        pip install 'mmcv<2'" in lines  # in one piece, for copying
    assert "wrong: mmcv" in lines


@WIDTHS
def test_demo(monkeypatch, width):
    compressed = tuple(
        CompressedResult(name, f"rank {rank}, keep 0.75", 97.22, 99.72, 6_290_000, 146_000, 1.46, 12.0)
        for name, rank in (("half", 7), ("third", 4), ("seventh", 4))
    )
    result = DemoResult(DenseResult(100.0, 12_100_000, 308_000, 20.0), compressed, 1437, 360, 64, 0, False)
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    Output(as_json=False, verbose=False, threads=None, stdout=stream, stderr=stream).show(demo._table(result))
    text = "\n".join(stream.lines)
    assert max(map(len, stream.lines)) <= width
    assert text.count("99.72 %") == text.count("97.22 %") == text.count("keep 0.75") == 3
    if width == 40:
        assert "  recipe rank 4, keep 0.75," in text and "speed-up 1.46" in text
    else:
        assert [line.split()[:5] for line in stream.lines if line.startswith("third")] == [
            ["third", "rank", "4,", "keep", "0.75"]
        ]


@WIDTHS
def test_errors_are_wrapped_between_words(terminal, width):
    code, lines, notes = terminal(width, "inspect", "nothing")
    assert (code, lines) == (2, [""])
    assert " ".join(" ".join(notes).split()).count("error: 'nothing' is neither a directory nor a model source;") == 1


@pytest.mark.parametrize("columns", ["40", "200"])
def test_files_and_pipes_have_a_width_of_their_own(norton, monkeypatch, columns):
    before = norton("inspect", "demo:digits").out
    monkeypatch.setenv("COLUMNS", columns)
    assert norton("inspect", "demo:digits").out == before
    assert max(map(len, before.splitlines())) <= 120

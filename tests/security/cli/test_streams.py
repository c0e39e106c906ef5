"""Outputs that are closed, full, or read by nobody."""

import json
import subprocess
import sys

import pytest

COMMANDS = pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "inspect demo:digits",
        pytest.param("inspect demo:digits --json", marks=pytest.mark.slow),
    ],
)


@pytest.fixture
def shell(folder, environment):
    """Runs a line of bash in which ``norton`` is the command under test."""

    def call(line):
        script = f'norton() {{ "{sys.executable}" -m norton_plugin "$@"; }}\n{line}'
        answer = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, cwd=folder, env=environment, timeout=120
        )
        # A busy machine adds a line every ten seconds.
        answer.stderr = "".join(line for line in answer.stderr.splitlines(True) if not line.startswith("still "))
        return answer

    return call


@COMMANDS
def test_a_reader_that_has_gone(shell, command):
    # The reader is gone before anything is written: the writer waits for that.
    answer = shell(f"{{ sleep 0.5; norton {command}; }} | true; echo ${{PIPESTATUS[0]}}")
    assert (answer.stdout, answer.stderr) == ("141\n", "")


@COMMANDS
def test_a_full_device(shell, command):
    answer = shell(f"norton {command} > /dev/full; echo $?")
    assert answer.stdout == "1\n"
    assert answer.stderr == (
        "error: stdout cannot be written: No space left on device; redirect it to a file, or to /dev/null\n"
    )


@pytest.mark.parametrize("command", ["--help", "compress demo:digits --rank 1 -o small", "inspect nothing --json"])
def test_a_closed_stdout_is_told_before_any_work(shell, folder, command):
    answer = shell(f"norton {command} >&-; echo $?")
    assert answer.stdout == "1\n"
    assert answer.stderr == "error: stdout cannot be written: it is closed; redirect it to a file, or to /dev/null\n"
    assert not (folder / "small").exists()


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&- <&-"])
def test_remarks_that_nobody_hears_stop_no_work(shell, folder, where):
    answer = shell(f"norton compress demo:digits --rank 1 -o small --json {where}; echo $? >&2")
    assert answer.stderr == "0\n"
    assert json.loads(answer.stdout)["artifact"] == "small"
    assert json.loads((folder / "small" / "norton.json").read_text())["format"]


def test_no_file_gets_a_standard_number(environment):
    code = (
        "import os\nfrom norton_plugin.cli.streams import reserve_descriptors\nreserve_descriptors()\n"
        "file = open('/dev/zero'); os._exit(file.fileno())"
    )
    answer = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], env=environment)
    assert answer.returncode > 2

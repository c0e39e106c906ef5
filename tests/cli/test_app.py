"""What holds for every command: version, help, exit codes, a light start."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import norton_plugin
from norton_plugin.cli.app import app


def test_version(norton):
    answer = norton("--version")
    assert (answer.code, answer.out) == (0, f"norton-plugin {norton_plugin.__version__}\n")


def test_help_lists_the_commands(norton):
    answer = norton("--help")
    assert answer.code == 0
    assert all(name in answer.out for name in ("inspect", "compress", "evaluate", "finetune", "export", "demo"))
    assert norton().out == answer.out


@pytest.mark.parametrize("command", ["inspect", "compress", "evaluate", "finetune", "export", "demo"])
def test_every_help_has_an_example(norton, command):
    answer = norton(command, "--help")
    assert answer.code == 0
    assert f"Example: norton {command} " in answer.out
    assert "--json" in answer.out


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["comprss"], "comprss"),
        (["inspect"], "SOURCE"),
        (["inspect", "demo:digits", "--rnk", "2"], "--rnk"),
        (["inspect", "demo:digits", "--threads", "0"], "--threads"),
        (["inspect", "demo:digits", "--num-classes", "ten"], "--num-classes"),
        (["compress", "demo:digits", "--rank", "2"], "--output"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(norton, arguments, quoted):
    answer = norton(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    assert quoted in line


def test_a_failure_is_one_line_and_code_1(norton, monkeypatch):
    monkeypatch.setattr("norton_plugin.insight.inspection.count_cost", lambda *_: 1 / 0)
    answer = norton("inspect", "demo:digits")
    assert answer.code == 1
    assert answer.err == "error: ZeroDivisionError: division by zero (-v shows where)\n"
    verbose = norton("inspect", "demo:digits", "-v")
    assert verbose.code == 1
    assert "Traceback" in verbose.err


def test_an_interrupt_is_code_130(norton, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("norton_plugin.insight.inspection.count_cost", interrupt)
    answer = norton("inspect", "demo:digits")
    assert (answer.code, answer.err.strip()) == (130, "error: interrupted")


def test_an_interrupt_that_a_library_swallows_is_told_all_the_same(norton, monkeypatch):
    from norton_plugin.insight import inspection

    count = inspection.count_cost

    def swallow(*given):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return count(*given)
        raise AssertionError("no signal came")

    monkeypatch.setattr(inspection, "count_cost", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        answer = norton("inspect", "demo:digits")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (answer.code, answer.err.strip()) == (130, "error: interrupted")


def test_shared_options_stand_before_or_after_the_command(norton):
    before, after = norton("--json", "inspect", "demo:digits"), norton("inspect", "demo:digits", "--json")
    assert json.loads(before.out) == json.loads(after.out)


def test_threads_are_put_back(norton):
    import torch

    count = torch.get_num_threads()
    assert norton("inspect", "demo:digits", "--threads", count + 1).code == 0
    assert torch.get_num_threads() == count


def test_help_imports_no_torch():
    code = (
        "import sys; from norton_plugin.cli.app import run; run(['compress', '--help']); "
        "print([m for m in ('torch', 'timm', 'mmengine', 'matplotlib') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_module_and_console_script_are_the_same_command():
    answer = subprocess.run(
        [sys.executable, "-m", "norton_plugin", "inspect", "nothing"], capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: 'nothing' is neither a directory nor a model source")


def test_commands_that_texts_name_have_the_options_they_name():
    group = typer.main.get_command(app)
    own = {name: {o for p in one.params for o in p.opts + p.secondary_opts} for name, one in group.commands.items()}
    shared = {"--json", "--threads", "--verbose", "--help"}
    package = Path(norton_plugin.__file__).parent
    named = 0
    texts = [(file, file.read_text()) for file in package.rglob("*.py")]
    for file, text in texts:
        for command, rest in re.findall(r"norton ([a-z][a-z-]+)((?:[^\n\"'()`;])*)", text):
            for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", rest) if command in own else ():
                named += 1
                assert option in own[command] | shared, f"{file.name}: norton {command} has no {option}"
    assert named > 20

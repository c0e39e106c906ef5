"""Every error is one line on stderr, and JSON on stdout where it is asked for."""

import json

import pytest

from norton_plugin.cli.output import one_line


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

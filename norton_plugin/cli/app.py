"""The ``norton`` command: its commands, its global options, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from norton_plugin import __version__
from norton_plugin.cli.command import AsJson, Threads, Verbose, add_command
from norton_plugin.cli.compress import compress
from norton_plugin.cli.demo import demo
from norton_plugin.cli.doctor import doctor
from norton_plugin.cli.evaluate import evaluate
from norton_plugin.cli.export_config import export_config
from norton_plugin.cli.finetune import finetune
from norton_plugin.cli.inspect import inspect
from norton_plugin.cli.output import print_error
from norton_plugin.errors import NortonError

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
# typer >= 0.17 brings its own copy of click, older ones import click; BadParameter's ancestor is right for both.
_UsageError: type[Exception] = cast("type[Exception]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Compress convolutional networks by filter-wise CP decomposition and PABS pruning.\n\n"
        "Example: norton compress timm:resnet18 --pretrained --rank 3 --keep 0.7 -o resnet18-small"
    ),
)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"norton-plugin {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    as_json: AsJson = False,
    threads: Threads = None,
    verbose: Verbose = False,
) -> None:
    """Keep the shared options for the command, or show the help where none is given."""
    context.obj = {"as_json": as_json, "threads": threads, "verbose": verbose}
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


add_command(app, inspect, name="inspect")
add_command(app, compress, name="compress")
add_command(app, evaluate, name="evaluate")
add_command(app, finetune, name="finetune")
add_command(app, export_config, name="export-config")
add_command(app, doctor, name="doctor")
add_command(app, demo, name="demo")


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; errors become one line on stderr.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code: 0, 1 for a failure, 2 for bad input or usage, 130 where interrupted.
    """
    try:
        code = app(args=list(arguments), prog_name="norton", standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted")
        return INTERRUPTED
    except NortonError as error:
        print_error(str(error))
        return BAD_INPUT
    except _UsageError as error:
        print_error(f"{error.format_message()} (norton --help lists what there is)")  # type: ignore[attr-defined]
        return BAD_INPUT
    except Exception as error:  # the last line of defence: whatever happens, users get one line
        print_error(f"{type(error).__name__}: {error} (-v shows where)")
        return FAILURE
    if code == INTERRUPTED:  # newer typers turn an interrupt into this code themselves
        print_error("interrupted")
    return code if isinstance(code, int) else 0

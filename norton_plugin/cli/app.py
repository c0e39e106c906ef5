"""The ``norton`` command: its commands, its global options, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from norton_plugin import __version__
from norton_plugin.cli.bench import bench
from norton_plugin.cli.cam import cam
from norton_plugin.cli.command import AsJson, Threads, Verbose, add_command
from norton_plugin.cli.compare import compare
from norton_plugin.cli.compress import compress
from norton_plugin.cli.demo import demo
from norton_plugin.cli.deploy import deploy
from norton_plugin.cli.doctor import doctor
from norton_plugin.cli.evaluate import evaluate
from norton_plugin.cli.export import export
from norton_plugin.cli.export_config import export_config
from norton_plugin.cli.failures import INTERRUPTED, Failure, failure_of, interruption, wants_json
from norton_plugin.cli.finetune import finetune
from norton_plugin.cli.help import Group
from norton_plugin.cli.inspect import inspect
from norton_plugin.cli.report import report
from norton_plugin.cli.signals import Interruption, ended_children, interruptible
from norton_plugin.cli.streams import guarded_streams

app = typer.Typer(
    cls=Group,
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
add_command(app, deploy, name="deploy")
add_command(app, bench, name="bench")
add_command(app, export, name="export")
add_command(app, report, name="report")
add_command(app, compare, name="compare")
add_command(app, cam, name="cam")
add_command(app, export_config, name="export-config")
add_command(app, doctor, name="doctor")
add_command(app, demo, name="demo")


def run(arguments: Sequence[str]) -> int:
    """Run one command line; errors become one line on stderr, and JSON on stdout where it is asked for.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code: 0, 1 for a failure, 2 for bad input or usage, 128 and the number of the signal that ended it.
    """
    arguments = list(arguments)
    with guarded_streams(), interruptible() as signalled:
        outcome = _attempt(arguments, signalled)
        if isinstance(outcome, int):
            return outcome
        outcome.tell(as_json=wants_json(arguments))
        return outcome.exit_code


def _attempt(arguments: list[str], signalled: Interruption) -> int | Failure:
    """Run one command line.

    Returns:
        Its exit code, or why it has none of its own.
    """
    try:
        sys.stdout.flush()  # no work for an output that cannot be written
        with ended_children(), signalled.while_working():
            code = app(args=arguments, prog_name="norton", standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as stop:  # older typers raise it
        code = stop.exit_code
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return failure_of(error) if signalled.number is None else interruption(signalled.number)
    # Newer typers turn an interrupt into this code themselves, and libraries may swallow it.
    if code == INTERRUPTED or signalled.number is not None:
        return interruption(signalled.number)
    return code if isinstance(code, int) else 0

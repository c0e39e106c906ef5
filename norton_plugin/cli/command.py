"""Registering a command together with the options that all commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from norton_plugin.cli.help import Command
from norton_plugin.cli.limits import at_most_per_core
from norton_plugin.cli.output import session
from norton_plugin.cli.signals import own_temporary_folder

_PANEL = "Shared options"

AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result, or the error, as JSON on stdout, and nothing else there.",
        rich_help_panel=_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        callback=at_most_per_core,
        metavar="N",
        help="CPU threads of torch.",
        rich_help_panel=_PANEL,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log what happens; show tracebacks of errors.", rich_help_panel=_PANEL),
]
_SHARED: dict[str, tuple[Any, Any]] = {
    "as_json": (AsJson, False),
    "threads": (Threads, None),
    "verbose": (Verbose, False),
}


def add_command(app: typer.Typer, function: Callable[..., None], *, name: str) -> None:
    """Register a command that talks through an ``Output``.

    Args:
        app: Where to register.
        function: Its keyword ``out`` gets the ``Output``; its other parameters are the command's own. Its docstring is
            the help text.
        name: What users type.
    """

    def run(context: typer.Context, **arguments: Any) -> None:
        shared = {key: arguments.pop(key) for key in _SHARED}
        given_before = context.obj or {}  # norton --json inspect ... is the same as norton inspect ... --json
        settings: dict[str, Any] = {key: value or given_before.get(key) for key, value in shared.items()}
        if arguments.get("workers"):
            own_temporary_folder()
        with session(**settings) as out:
            function(out=out, **arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=keyword) for p in inspect.signature(function, eval_str=True).parameters.values()]
    parameters = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(p for p in own if p.name != "out"),
        *(inspect.Parameter(k, keyword, default=d, annotation=a) for k, (a, d) in _SHARED.items()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, cls=Command, help=inspect.cleandoc(function.__doc__ or ""))(run)

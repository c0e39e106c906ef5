"""The command line: ``norton inspect | compress | evaluate | finetune | demo``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script; ends the process with the command's exit code."""
    from norton_plugin.cli.app import run

    sys.exit(run(sys.argv[1:]))

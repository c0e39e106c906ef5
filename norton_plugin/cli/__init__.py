"""The command line: one file per command, and what they share; the jobs themselves are done by the other rooms.

``compress`` and ``finetune`` call the functions of that name, ``inspect`` calls ``insight.inspect_model``, ``evaluate``
and ``export-config`` call ``mm``, ``export`` calls ``export.export``, ``doctor`` calls ``environment.diagnose``, and
``demo`` calls ``demo.run_demo``.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process, and end the process with the command's exit code."""
    from norton_plugin.cli.signals import die_quietly_by_interrupt
    from norton_plugin.cli.streams import reserve_descriptors

    reserve_descriptors()
    die_quietly_by_interrupt()
    from norton_plugin.cli.app import run

    sys.exit(run(sys.argv[1:]))

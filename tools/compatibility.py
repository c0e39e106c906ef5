"""Install the package with the lowest and with the newest versions it declares, run some tests, and write the table.

    python tools/compatibility.py                       both lanes; about 6 GB of downloads and twenty minutes each
    python tools/compatibility.py --lanes lowest --folder ENVIRONMENTS

Each lane is a virtual environment of its own. ``lowest`` takes every lower bound of setup.cfg as the version,
``newest`` whatever pip finds. The rows are kept in docs/results/compatibility.json; docs/compatibility.md is made of
them.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import venv
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "results" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
EXTRAS = ("timm", "demo")
LANES = ("lowest", "newest")
TESTS = (
    "tests/test_recipe.py",
    "tests/test_cost.py",
    "tests/test_pipeline.py",
    "tests/test_artifact.py",
    "tests/cpd",
    "tests/pabs",
    "tests/blocks",
    "tests/calibration",
    "tests/channels",
    "tests/surgery",
    "tests/integrations",
    "tests/deploy",
    "tests/insight",
    "tests/zoo",
    "tests/cli",
)
NEEDED_BY_TESTS = ("pytest>=8", "scipy>=1.10")
IMPORTS = "import norton_plugin as n; [getattr(n, name) for name in n.__all__]; print('imported')"
VERSIONS = (
    "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
)
_OLDER = """Older versions of torch, found by installing them:

| torch | what is missing |
| --- | --- |
| 2.3 | `torch.serialization.add_safe_globals`, so `NortonHook` cannot be imported; the rest can |
| 2.2 | `torch.nn.attention`: nothing can be imported |
| 2.1 | `torch.utils._pytree.tree_leaves`: nothing can be imported |

2.4 and 2.5 were not tried: 2.6 is asked for because it is the first in which `weights_only=True` keeps its promise
(CVE-2025-32434). Before, a checkpoint could run code when it was read. torch-pruning 1.5.1 has no `pruner.BasePruner`;
typer 0.16 does not work with the click of today.

The extra `mmdet` is tested with the pins of `tools/constraints.txt` alone (mmcv is built from source for every torch),
so its lower bounds are the versions tested: mmengine is in the table above, mmcv 2.1.0, mmdet 3.3.0.
"""
_REQUIREMENT = re.compile(r"^(?P<name>[\w.-]+)(?:>=(?P<low>[\w.]+))?")


def lower_bounds(setup: Path = ROOT / "setup.cfg") -> dict[str, str]:
    """Return the lower bound of every requirement of the light installation, by name of the distribution."""
    config = configparser.ConfigParser()
    config.read(setup)
    lines = config["options"]["install_requires"].splitlines()
    for extra in EXTRAS:
        lines += config["options.extras_require"][extra].splitlines()
    found = (_REQUIREMENT.match(line.strip()) for line in lines if line.strip())
    return {match["name"]: match["low"] for match in found if match and match["low"]}


def run_lane(lane: str, folder: Path) -> dict[str, Any]:
    """Install, import and test one lane, and return its row."""
    home = folder / lane
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    bounds = lower_bounds()
    pins = folder / f"{lane}.txt"
    pins.write_text("".join(f"{name}=={low}\n" for name, low in bounds.items()) if lane == "lowest" else "")
    row: dict[str, Any] = {"lane": lane, "date": date.today().isoformat(), "python": platform.python_version()}
    start = time.monotonic()
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(pins)]
    row["install"] = _outcome([*install, f"{ROOT}[{','.join(EXTRAS)}]", *NEEDED_BY_TESTS])
    row["install_seconds"] = round(time.monotonic() - start)
    if row["install"] != "ok":
        return row | {"versions": {}, "import": "not tried", "tests": "not tried"}
    found = _run([str(python), "-c", VERSIONS, *bounds])
    row["versions"] = json.loads(found.stdout)
    row["import"] = _outcome([str(python), "-c", IMPORTS])
    row["tests"] = _tests(python) if row["import"] == "ok" else "not tried"
    return row


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run outside of the repository, so that the installed package is imported and not the tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=tempfile.gettempdir(), env=environment, capture_output=True, text=True, check=False
    )


def _outcome(command: list[str]) -> str:
    """Return "ok", or the last line of what went wrong."""
    done = _run(command)
    if done.returncode == 0:
        return "ok"
    return ([line for line in done.stderr.splitlines() if line.strip()] or ["failed without a word"])[-1]


def _tests(python: Path) -> str:
    """Return pytest's own summary, with the names of the tests that failed."""
    options = [
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    done = _run([str(python), "-m", "pytest", *options, "-m", "not slow and not mm", *(str(ROOT / t) for t in TESTS)])
    lines = done.stdout.splitlines()
    failed = [line.split(" - ")[0].split("tests/")[-1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    summary = re.sub(r" in [\d.]+s.*| ?\([\d:]+\)", "", lines[-1].strip("= ")) if lines else done.stderr[-200:]
    return summary + (f": {', '.join(failed)}" if failed else "")


def page(rows: dict[str, Any], bounds: dict[str, str]) -> str:
    """Return docs/compatibility.md.

    Args:
        rows: By lane.
        bounds: As of ``lower_bounds``.
    """
    lanes = [rows[lane] for lane in LANES if lane in rows]
    head = f"| | {' | '.join(row['lane'] for row in lanes)} |\n| --- |{' --- |' * len(lanes)}\n"
    body = "".join(
        f"| {label} | {' | '.join(str(row[key]) for row in lanes)} |\n"
        for label, key in (("date", "date"), ("Python", "python"), ("installs", "install"), ("imports", "import"))
    )
    body += "".join(
        f"| {name} | {' | '.join(row['versions'].get(name, '-') for row in lanes)} |\n" for name in sorted(bounds)
    )
    body += f"| tests | {' | '.join(row['tests'] for row in lanes)} |\n"
    extras = " and ".join(f"`{extra}`" for extra in EXTRAS)
    return f"""# Compatibility

Made by `tools/compatibility.py`: the light installation (extras {extras}) once with every lower bound of `setup.cfg`
as the version, once with the newest versions that pip finds together, each in an environment of its own. "imports"
loads every public name. "tests" runs those of the algorithms, the tracer, surgery, artefacts, lowering, the zoo and the
command line; those marked `slow` or `mm` are left out.

{head}{body}
{_OLDER}"""


def main(arguments: list[str] | None = None) -> int:
    """Run the lanes asked for; return 1 where one fails."""
    parser = argparse.ArgumentParser(description="Install, import and test with the lowest and the newest versions.")
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    parser.add_argument("--folder", type=Path, help="keep the environments here, and use them again")
    options = parser.parse_args(arguments)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for lane in options.lanes:
            found[lane] = run_lane(lane, folder)
            print(json.dumps(found[lane], indent=1))
    rows = (json.loads(RECORD.read_text()) if RECORD.is_file() else {}) | found
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(rows, lower_bounds()))
    bad = [row for row in found.values() if row["tests"] == "not tried" or "failed" in row["tests"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

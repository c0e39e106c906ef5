"""What setup.cfg, CITATION.cff and the changelog say is true."""

import ast
import configparser
import datetime
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import norton_plugin

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(norton_plugin.__file__).parent
sys.path.insert(0, str(ROOT / "tools"))
import compatibility  # noqa: E402

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "torch_pruning": "torch-pruning",
    "pytorch_grad_cam": "grad-cam",
}
# Imported only if something else has brought it: OpenCV comes with mmengine, in one of two builds; Ultralytics is under
# AGPL-3.0, and nobody gets it through this package; models of transformers come from those who have it.
OPTIONAL = {"cv2", "ultralytics", "transformers"}
# Needed by a tool that is named itself.
BEHIND_TOOLS = {"types-pyyaml": "mypy", "mkdocstrings": "mkdocs", "mkdocs-material": "mkdocs", "ipykernel": "nbclient"}


def _config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def _requirements(text: str) -> list[Requirement]:
    return [Requirement(line.strip()) for line in text.splitlines() if line.strip()]


def _names(text: str) -> set[str]:
    return {canonicalize_name(found.name) for found in _requirements(text)} - {"norton-plugin"}


def _extras() -> dict[str, set[str]]:
    return {name: _names(text) for name, text in _config()["options.extras_require"].items()}


BASE = _names(_config()["options"]["install_requires"])
OPTIONAL_PARTS = {name: names for name, names in _extras().items() if name not in ("dev", "all")}


def _imported(source: str) -> set[str]:
    """Distributions that a file imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - OPTIONAL - {"norton_plugin", ""}
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in tops}


def _undeclared(imported: set[str]) -> set[str]:
    """What neither the base nor any one extra brings, for a file that needs all of it."""
    missing = imported - BASE
    return min((missing - names for names in OPTIONAL_PARTS.values()), key=len)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if ".mim" not in path.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_a_file_imports_one_extra_brings(path: Path) -> None:
    assert _undeclared(_imported(path.read_text())) == set()


def test_an_undeclared_import_is_found() -> None:
    assert _undeclared(_imported("def f():\n    import pandas")) == {"pandas"}
    assert _undeclared(_imported("import sklearn, mmdet")) != set()  # each is declared, by no extra together
    assert _undeclared(_imported("import yaml\nfrom PIL import Image\nimport timm")) == set()


def test_nothing_is_declared_that_no_file_imports() -> None:
    imported = set().union(*(_imported(path.read_text()) for path in FILES))
    declared = BASE.union(*OPTIONAL_PARTS.values())
    assert declared - imported == set()


def test_tools_of_developers_are_used() -> None:
    files = [".ci/run", "CONTRIBUTING.md", ".pre-commit-config.yaml", "mkdocs.yml", "pyproject.toml"]
    files += [
        str(path.relative_to(ROOT)) for folder in ("tests", "tools") for path in (ROOT / folder).rglob("*.[ps][yh]")
    ]
    files.remove("tests/test_metadata.py")
    text = "\n".join((ROOT / name).read_text() for name in files)
    words = {canonicalize_name(word) for word in re.findall(r"[\w-]+", text)}
    words |= {"pytest-xdist"} if "--numprocesses" in text else set()
    unused = {name for name in _extras()["dev"] if BEHIND_TOOLS.get(name, name) not in words}
    assert unused == set()


def test_all_means_every_extra_of_users() -> None:
    (entry,) = _requirements(_config()["options.extras_require"]["all"])
    assert entry.extras == set(OPTIONAL_PARTS)


def test_extras_that_messages_name_exist() -> None:
    texts = [*FILES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {name for path in texts for found in re.findall(r"norton-plugin\[([\w,]+)\]", path.read_text())
             for name in found.split(",")}  # fmt: skip
    assert named
    assert named - set(_extras()) == set()


def test_every_requirement_has_a_lower_bound_that_the_pins_meet() -> None:
    pins: dict[str, set[str]] = {}
    for pin in _requirements(re.sub(r"#.*", "", (ROOT / "tools" / "constraints.txt").read_text())):
        pins.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier).removeprefix("=="))
    config = _config()
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    for requirement in (found for text in texts for found in _requirements(text)):
        if requirement.name in ("norton-plugin", "types-PyYAML"):
            continue
        assert any(bound.operator == ">=" for bound in requirement.specifier), requirement
        outside = [pin for pin in pins.get(canonicalize_name(requirement.name), ()) if pin not in requirement.specifier]
        assert outside == [], requirement


def test_the_lowest_lane_is_what_setup_cfg_declares() -> None:
    rows = json.loads(compatibility.RECORD.read_text())
    bounds = compatibility.lower_bounds()
    assert set(rows) == set(compatibility.LANES)
    lowest = {name: Requirement(f"x=={version}") for name, version in rows["lowest"]["versions"].items()}
    assert [name for name, low in bounds.items() if low not in lowest[name].specifier] == []
    for row in rows.values():
        assert (row["install"], row["import"]) == ("ok", "ok")
        assert re.fullmatch(r"\d+ passed(, \d+ (skipped|deselected|warnings?))*", row["tests"])


def test_the_page_is_made_from_the_rows() -> None:
    rows = json.loads(compatibility.RECORD.read_text())
    assert compatibility.PAGE.read_text() == compatibility.page(rows, compatibility.lower_bounds())


def test_one_version_everywhere() -> None:
    changelog = re.search(r"^## \[(\d[^]]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert norton_plugin.__version__ == changelog[1] == citation["version"]
    assert datetime.date.fromisoformat(changelog[2]) == citation["date-released"]


def test_citation_has_what_its_schema_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "message", "title"} <= set(citation)
    assert citation["license"] == _config()["metadata"]["license"]
    paper = citation["preferred-citation"]
    assert {"type", "authors", "title"} <= set(paper)
    assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
    assert (paper["year"], paper["volume"], paper["issue"], paper["start"], paper["end"]) == (2025, 36, 3, 4358, 4370)
    assert paper["doi"] == "10.1109/TNNLS.2024.3370294"

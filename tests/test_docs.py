"""What the documents name is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), ROOT / "configs/README.md", *(ROOT / "docs").rglob("*.md")])


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_trap_has_a_test():
    text = (ROOT / "docs" / "traps.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| T")}
    assert list(rows) == [f"T{number}" for number in range(1, 26)]
    for line in rows.values():
        assert re.findall(r"`[a-z/_]+\.py::\w+`", line)
    named = re.findall(r"`([a-z/_]+\.py)::(\w+)`", text)
    missing = [f"{path}::{name}" for path, name in named if name not in functions(ROOT / "tests" / path)]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)", document.read_text())
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_of_the_repository_that_are_named_are_there(document):
    named = re.findall(r"`((?:tools|configs|docs|norton_plugin)/[\w/.-]+\.\w+)`", document.read_text())
    # mmdet has a tools folder as well; its scripts are named for what they are.
    stock = {"tools/train.py", "tools/test.py", "tools/analysis_tools/get_flops.py"}
    assert [name for name in named if name not in stock and not (ROOT / name).exists()] == []

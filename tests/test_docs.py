"""What the documents name is there, and what the code names in the documents."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        ROOT / "configs/README.md",
        ROOT / "tools/README.md",
        *(ROOT / ".github").rglob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]
)


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
    rooms = "|".join(path.name for path in (ROOT / "norton_plugin").iterdir() if path.is_dir())
    inside = re.findall(rf"`((?:{rooms})/[\w/]+\.py)[`:]", document.read_text())
    places = [ROOT / "norton_plugin", ROOT / "tests"]  # tests are named by their rooms as well
    assert [name for name in inside if not any((place / name).exists() for place in places)] == []


FILES = [path for top in ("norton_plugin", "tests", "tools", "configs") for path in (ROOT / top).rglob("*.py")]


def anchors(document):
    """Numbers of the sections of a document."""
    return set(re.findall(r"^## (\d+)\. ", document.read_text(), re.MULTILINE))


def test_sections_that_code_cites_are_there():
    cited = {
        (path.relative_to(ROOT).as_posix(), *found)
        for path in FILES
        for found in re.findall(r"(docs/\w+\.md),? section (\d+)", path.read_text())
    }
    assert len(cited) >= 10
    wrong = [where for where in cited if where[2] not in anchors(ROOT / where[1])]
    assert wrong == []


def test_no_code_cites_a_file_outside_of_the_repository():
    this = Path(__file__).resolve()
    pattern = re.compile(r"design/|\(design:|design notes?\b|(?<![\w.])method\.md|\.\./shared")
    texts = {path: path.read_text() for path in FILES if path.resolve() != this}
    assert [path.name for path, text in texts.items() if pattern.search(text.replace("docs/method.md", ""))] == []


def test_pre_commit_checks_what_ci_checks():
    ci = re.findall(r"^check (?!bash)(.+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [shlex.split(hook["entry"]) for hook in local["hooks"]]
    assert [[Path(command).name, *rest] for command, *rest in entries] == [shlex.split(line) for line in ci]
    assert all(command.startswith(".venv/bin/") for command, *_ in entries)


def test_pre_commit_reads_its_file():
    clientlib = pytest.importorskip("pre_commit.clientlib")
    assert clientlib.load_config(ROOT / ".pre-commit-config.yaml")["repos"]


def test_the_readme_tells_the_coverage_of_today():
    rows = {
        cells[0]: cells[1:4]
        for line in (ROOT / "docs/coverage.md").read_text().splitlines()
        if line.startswith("| ") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 3
    }
    lists = [rows["timm-families"], rows["timm-known"], rows["torchvision"], rows["mmdet-families"]]
    models, full, part = (", ".join(column) for column in zip(*lists, strict=True))
    (told,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| families of timm"))
    assert f"({models};" in told and f"in full {full}; in part {part} (" in told


def test_every_document_is_on_the_site():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text().replace("!!python", "python"))

    def pages(entries):
        for entry in entries:
            (value,) = entry.values()
            yield from pages(value) if isinstance(value, list) else [value]

    named = set(pages(site["nav"]))
    folder = ROOT / "docs"
    documents = {path.relative_to(folder) for path in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]}
    assert {path.with_suffix(".md").as_posix() for path in documents} - named == set()


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_forms_have_what_the_host_asks_for(form):
    data = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(data)
    identifiers = [part["id"] for part in data["body"]]
    assert len(identifiers) == len(set(identifiers))
    for part in data["body"]:
        assert part["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert part["attributes"]["label"]

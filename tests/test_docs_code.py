"""Every Python code block of the documents does what a reader expects of it: it runs."""

import ast
from pathlib import Path

import pytest
from documents import BLOCKS, PAGES, ROOT, Block, blocks_of, run


def pages(kind: str) -> list[Path]:
    return [page for page in PAGES if any(block.page == page and block.kind == kind for block in BLOCKS)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", pages("run"), ids=name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for block in BLOCKS:
        if block.page == page and block.kind == "run":
            run(block, namespace)


@pytest.mark.slow
@pytest.mark.mm
@pytest.mark.parametrize("page", pages("slow"), ids=name)
def test_slow_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for block in BLOCKS:
        if block.page == page and block.kind in ("run", "slow"):
            run(block, namespace)


@pytest.mark.mm
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "config"], ids=str)
def test_configs_are_read(block, tmp_path):
    from mmengine.config import Config
    from mmengine.registry import HOOKS

    path = tmp_path / "documented.py"
    path.write_text(block.code)
    config = Config.fromfile(path)
    assert config.model.type
    assert HOOKS.build(config.default_hooks.norton).recipe.to_dict()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "fragment"], ids=str)
def test_fragments_say_why_and_are_python(block):
    assert len(block.reason.split()) >= 3
    ast.parse(block.code)


def test_blocks_and_their_marks_are_found(tmp_path):
    page = tmp_path / "page.md"
    text = (
        "# T\n\n```python\na = 1\n```\n\n<!-- given:\nb = 2\n-->\n<!-- slow: it waits -->\n\n"
        "```python\nc = a + b\n```\n```bash\nls\n```\n"
    )
    first, second = blocks_of(text, page)
    assert (first.kind, first.code, first.line, first.given) == ("run", "a = 1\n", 4, "")
    assert (second.kind, second.reason, second.given, second.line) == ("slow", "it waits", "b = 2", 13)
    namespace: dict[str, object] = {}
    for block in (first, second):
        run(block, namespace)
    assert namespace["c"] == 3


def test_an_error_names_the_line_of_the_document(tmp_path):
    (block,) = blocks_of("text\n\n```python\n\n1 / 0\n```\n", tmp_path / "page.md")
    with pytest.raises(ZeroDivisionError) as raised:
        run(block, {})
    assert raised.traceback[-1].lineno + 1 == 5


def test_readme_has_code_that_runs():
    assert sum(isinstance(block, Block) and block.page.name == "README.md" for block in BLOCKS) >= 2

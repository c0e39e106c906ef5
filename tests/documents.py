"""The Python code blocks of the documents, and what each says of itself in the comment above it.

A block runs as it stands, in the namespace of the blocks above it on its page, unless a comment directly above says

    <!-- given: ... -->      lines of Python that run first: what the reader is assumed to have
    <!-- slow: reason -->    it runs in the slow tests
    <!-- config -->          it is a config, read by mmengine
    <!-- fragment: reason -->  it is part of something; only its syntax is checked
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(
    r"(?P<comments>(?:<!--(?:(?!-->).)*-->\n+)*)```(?:python|py)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
_COMMENT = re.compile(r"<!--\s*(?P<kind>\w+):?(?P<text>.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        page: The document.
        line: Line of its first statement, from 1.
        code: Its text.
        kind: ``"run"``, ``"slow"``, ``"config"`` or ``"fragment"``.
        reason: Why it is not simply run.
        given: What runs first.
    """

    page: Path
    line: int
    code: str
    kind: str
    reason: str
    given: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def blocks_of(text: str, page: Path) -> list[Block]:
    """The Python blocks of a document, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        marks = {c["kind"]: c["text"].strip() for c in _COMMENT.finditer(match["comments"])}
        given = marks.pop("given", "")
        kinds = [kind for kind in marks if kind in ("slow", "config", "fragment")]
        if len(kinds) > 1:
            raise ValueError(f"{page}: a block is marked {' and '.join(kinds)}")
        kind = kinds[0] if kinds else "run"
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(page, line, match["code"], kind, marks.get(kind, ""), given))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(), page)]


def run(block: Block, namespace: dict[str, object]) -> None:
    """Run a block as a reader would; errors name the line of the document."""
    exec(compile(block.given, f"{block.page}, given", "exec"), namespace)
    exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), namespace)

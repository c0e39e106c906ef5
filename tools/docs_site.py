"""Hooks of mkdocs: the pages of the site that do not stand in docs/ as they are.

Documents of the top folder become pages, notebooks become pages that show their cells without running them, and api.md
lists the public names with their docstrings. Links between documents are turned into links between pages.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Document of the top folder -> page.
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages; notebooks are shown by their pages instead of being copied."""
    generated = {page: relinked((ROOT / source).read_text(), source, page) for source, page in TOP.items()}
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        generated[page] = notebook_page(json.loads((ROOT / "docs" / file.src_uri).read_text()))
        files.remove(file)
    generated["api.md"] = api_page()
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of documents in docs/ into links between pages."""
    if page.file.generated_by:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def relinked(text: str, source: str, page: str) -> str:
    """Return a document whose links lead to pages.

    Args:
        text: The document.
        source: Its path in the repository.
        page: Its path on the site.
    """

    def replace(match: re.Match[str]) -> str:
        path = os.path.normpath(PurePosixPath(source).parent / match["target"])
        target = TOP.get(path, path.removeprefix("docs/").replace(".ipynb", ".md"))
        relative = os.path.relpath(target, PurePosixPath(page).parent)
        return f"]({relative}{match['anchor'] or ''})"

    return _LINK.sub(replace, text)


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook as Markdown, code cells as code blocks."""
    texts = ("".join(cell["source"]) for cell in notebook["cells"])
    kinds = (cell["cell_type"] for cell in notebook["cells"])
    blocks = (f"```python\n{text}\n```" if kind == "code" else text for kind, text in zip(kinds, texts, strict=True))
    return "\n\n".join(blocks) + "\n"


def api_page() -> str:
    """Return a page that asks mkdocstrings for every public name, where it is defined."""
    sys.path.insert(0, str(ROOT))
    package = importlib.import_module("norton_plugin")
    lines = ["# API", "", "Public names of `norton_plugin`, each imported as `from norton_plugin import NAME`.", ""]
    for name in sorted(set(package.__all__) - {"__version__"}, key=str.lower):
        value = getattr(package, name)
        lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)

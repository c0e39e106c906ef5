"""A browser without a window, and a reader of HTML: what a page is looked at with."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "img", "br", "hr", "input"}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Reader(HTMLParser):
    """Elements of a page with their attributes, and its text; a tag that is not closed where it should be raises."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1] == tag, f"</{tag}> at {self.getpos()} closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def looked_at(page: str, folder: Path, *, width: int, dark: bool = False) -> dict[str, object]:
    """Open a page in a frame of some width, and return what a script outside of it finds there.

    Returns:
        ``over``: pixels by which the page is wider than the frame; ``wide``: elements that reach over its edge and
        cannot be scrolled; ``background``: its colour; ``layers``: rows of its tables.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(NAMES)}")
    script = """
    onload = () => {
      const inner = document.querySelector('iframe').contentDocument, root = inner.documentElement;
      const scrolled = e => e.closest('.scroll, .skip');
      const wide = [...inner.body.querySelectorAll('*')].filter(
        e => !scrolled(e) && e.getBoundingClientRect().right > root.clientWidth + 0.5
      ).map(e => e.outerHTML.slice(0, 80));
      document.title = JSON.stringify({wide, over: root.scrollWidth - root.clientWidth,
        background: getComputedStyle(inner.body).backgroundColor, layers: inner.querySelectorAll('tr').length});
    };"""
    frame = f'<iframe srcdoc="{html.escape(page)}" style="width:{width}px;height:800px;border:0"></iframe>'
    outer = folder / "outer.html"
    outer.write_text(f"<!DOCTYPE html><title>none</title><script>{script}</script>{frame}", encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    options += ["--window-size=1600,900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    answer = subprocess.run(
        [program, *options, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<title>(.*?)</title>", answer.stdout, re.DOTALL)
    assert found, answer.stderr[-2000:]
    return json.loads(html.unescape(found[1]))

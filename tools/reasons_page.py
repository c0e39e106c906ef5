"""Write docs/reasons.md from the enum of reasons.

python tools/reasons_page.py
"""

from pathlib import Path

from norton_plugin.reasons.page import markdown

if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "reasons.md").write_text(markdown(), encoding="utf-8")

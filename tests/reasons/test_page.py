"""docs/reasons.md says what the enum says."""

import re

from norton_plugin.reasons import Reason
from norton_plugin.reasons.page import markdown


def test_the_page_is_the_one_the_tool_writes(repository):
    page = (repository / "docs" / "reasons.md").read_text(encoding="utf-8")
    assert page == markdown(), "python tools/reasons_page.py writes it anew"


def test_every_reason_has_a_section_under_the_heading_of_its_kind():
    counted, harmless = markdown().split("## Does not keep a model from full")
    for part, blocks in ((counted, True), (harmless, False)):
        wanted = [reason for reason in Reason if reason.blocks == blocks]
        assert re.findall(r"^### (.+)$", part, re.MULTILINE) == [reason.code for reason in wanted]
        for reason in wanted:
            section = part.split(f"### {reason.code}\n")[1].split("\n### ")[0]
            assert all(text in section for text in (reason.template, reason.advice, reason.example))

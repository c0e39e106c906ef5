"""One self-contained HTML page of a compression: no script, no network, from what the artefact holds."""

from norton_plugin.insight.page.measured import Picture, Table
from norton_plugin.insight.page.writing import page_template, render_page, write_page

__all__ = ["Picture", "Table", "page_template", "render_page", "write_page"]

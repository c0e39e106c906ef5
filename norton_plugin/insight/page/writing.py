"""From an artefact to the page, and the page to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from norton_plugin.artifact import Manifest, read_manifest, write_whole
from norton_plugin.errors import MissingExtraError
from norton_plugin.insight.numbers import change, percent, short
from norton_plugin.insight.page import charts
from norton_plugin.insight.page.measured import Table, measurements, pictures, pictures_in, tables_of
from norton_plugin.insight.page.stored import StoredLayer, StoredMap, stored_report
from norton_plugin.pipeline.wording import size_in_words

_TEMPLATE, _STYLE = "page.html.j2", "page.css"
_MOST_MAPS = 6
# Of an artefact's further facts, what is no measurement.
_PLAIN_FACTS = ("preprocessing", "inputs", "weights", "deployment")  # shown elsewhere; forms.json has the last


def write_page(
    directory: str | Path,
    output: str | Path | None = None,
    *,
    tables: Sequence[Table] = (),
    more_pictures: Sequence[Path] = (),
) -> Path:
    """Write the page of an artefact; the file is complete or, where anything fails, what it was before.

    Args:
        directory: Of the artefact.
        output: The file, ``report.html`` in the directory by default.
        tables: Measurements to show in place of those stored with the model, besides those in the directory.
        more_pictures: Files of images to show besides those in the directory.

    Returns:
        The file.

    Raises:
        ArtifactError: The directory holds no artefact with a report, or the file cannot be written.
        MissingExtraError: jinja2 is not installed.
    """
    target = Path(directory, "report.html") if output is None else Path(output)
    text = render_page(directory, tables=tables, more_pictures=more_pictures)
    return write_whole(target, text.encode())


def render_page(directory: str | Path, *, tables: Sequence[Table] = (), more_pictures: Sequence[Path] = ()) -> str:
    """Return the page of an artefact as HTML; see ``write_page``."""
    template = page_template()
    folder = Path(directory)
    manifest = read_manifest(folder)
    report = stored_report(manifest.report, folder)
    found, problems = measurements(folder)
    images, more_problems = pictures([*more_pictures, *pictures_in(folder)])
    page: str = template.render(
        title=_title(manifest, folder),
        report=report,
        asked=_asked(manifest.recipe),
        weights=_weights(manifest),
        by_macs=sorted(report.layers, key=lambda layer: -layer.macs_before),
        most=max((max(each.macs_before, each.macs_after) for each in report.layers), default=0) or 1,
        by_size=_by_size(report.layers),
        scatter=charts.scatter(report.layers),
        maps=[charts.heat_map(each) for each in _spread(report.maps, _MOST_MAPS)],
        more_maps=max(0, len(report.maps) - _MOST_MAPS),
        tables=[*(tables or _facts(manifest)), *found],
        pictures=images,
        problems=[*problems, *more_problems],
        style=resources.files(__package__).joinpath(_STYLE).read_text(encoding="utf-8"),
        box=charts,
    )
    return page


def page_template() -> Any:
    """Return the page as a template of jinja2, in which every value is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2 is not installed; run: pip install 'norton-plugin[insight]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": short, "percent": percent, "size": size_in_words}
    environment.globals["change"] = change
    source = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)


def _title(manifest: Manifest, folder: Path) -> str:
    source = manifest.source or {}
    if "kind" in source and "name" in source:
        return f"{source['kind']}:{source['name']}"
    return folder.resolve().name


def _by_size(layers: Sequence[StoredLayer]) -> list[StoredLayer]:
    return sorted((layer for layer in layers if layer.size), key=lambda layer: -(layer.size or 0))


def _spread(maps: Sequence[StoredMap], most: int) -> list[StoredMap]:
    """Return a few maps from all over the model."""
    count = min(most, len(maps))
    return [maps[round(i * (len(maps) - 1) / max(1, count - 1))] for i in range(count)]


def _weights(manifest: Manifest) -> str:
    given = manifest.extra.get("weights")
    return given if isinstance(given, str) else ""


def _asked(recipe: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return what the recipe asked for: its settings that are set, section by section."""
    asked = []
    for section, settings in (recipe or {}).items():
        if isinstance(settings, Mapping):
            asked += [(f"{section}.{key}", str(v)) for key, v in settings.items() if v not in (None, {}, [], "")]
        else:
            asked.append((section, str(settings)))
    return asked


def _facts(manifest: Manifest) -> list[Table]:
    """Return the measurements that were stored with the model, such as accuracy after fine-tuning."""
    measured = {key: value for key, value in manifest.extra.items() if key not in _PLAIN_FACTS}
    return tables_of("Stored with the model", measured)

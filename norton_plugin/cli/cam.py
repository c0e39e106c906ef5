"""``norton cam``."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from norton_plugin.cli import options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import output_file, read_path
from norton_plugin.cli.picture_options import Dense, Limit, readable_images, told
from norton_plugin.errors import ArtifactError, SourceError

if TYPE_CHECKING:
    from norton_plugin.cli.models import Opened
    from norton_plugin.pictures import CamImage

_NEEDS = "norton cam wants artefacts first, then images, such as: norton cam half third photos"


def cam(
    out: Output,
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=read_path,
            metavar="DIR... IMAGES...",
            help="Artefacts of one dense model, then files and folders of images.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", parser=read_path, callback=output_file, metavar="FILE", help="Picture to write (.png)."
        ),
    ] = Path("cam.png"),
    dense: Dense = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="NAME", help="Whose map is drawn.", show_default="the last one"),
    ] = None,
    limit: Limit = 8,
    trust_code: options.TrustCode = False,
) -> None:
    """Draw where a classifier looks, before and after compression: a row for each image, a column for each model.

    Class activation maps (Grad-CAM) of the class that the dense model sees; r is the correlation with its map.

    Example: norton cam half third seventh photos --dense dense.safetensors -o cam.png
    """
    from norton_plugin.artifact import MANIFEST, write_whole
    from norton_plugin.cli.models import check_classifier, open_dense, open_model
    from norton_plugin.pictures import draw_grid, film_bytes, last_map

    if output.suffix.lower() != ".png":
        raise ArtifactError(f"--output {str(output)!r} should end in .png")
    directories = [path for path in paths if (path / MANIFEST).is_file()]
    if not directories or len(directories) == len(paths):
        what = "an image or a folder of images" if directories else "an artefact"
        raise SourceError(f"there is no {what.removeprefix('an ')} among the arguments; {_NEEDS}")
    with out.status("opening the models"):
        opened = [open_model(str(directory), trust_code=trust_code) for directory in directories]
        for each in opened:
            check_classifier(each)
        _check_alike(opened)
        models = [open_dense(opened[0], dense), *(each.model for each in opened)]
        place = layer or last_map(models[0], opened[0].example_inputs[0])
    given = [path for path in paths if path not in directories]
    gray = opened[0].preprocessing.input_size[0] == 1
    images, left = readable_images(out, given, gray=gray, limit=limit)
    with out.status("drawing"):
        seen = [_seen(models, image, opened[0], place) for image in images.values()]
        grid = draw_grid(seen, [path.name for path in images], ["dense", *map(_heading, opened)])
        write_whole(output, film_bytes([grid], ".png"))
    means = [_mean(seen, i + 1) for i in range(len(opened))]
    words = ", ".join(f"{e.name} {'-' if m is None else f'{m:.2f}'}" for e, m in zip(opened, means, strict=True))
    out.show(f"correlation with the dense model's map at {place}, mean of {len(seen)} images: {words}")
    out.show(f"written to {output}")
    found = [
        {
            "image": str(path),
            "target": image.target,
            "classes": [view.best for view in image.models],
            "correlations": [view.correlation for view in image.models[1:]],
        }
        for path, image in zip(images, seen, strict=True)
    ]
    names = [each.name for each in opened]
    facts = {"artifacts": names, "layer": place, "mean_correlations": means, "picture": str(output)}
    out.result({**facts, "images": found, "skipped": told(left)})


def _seen(models: list[Any], image: Any, opened: Opened, layer: str) -> CamImage:
    import torch

    from norton_plugin.pictures import activation_maps
    from norton_plugin.zoo.transforms import image_transform

    pixels = image_transform(opened.preprocessing)(image).float() / 255
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (opened.preprocessing.mean, opened.preprocessing.std))
    plain = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return activation_maps(models, ((pixels - mean) / std)[None], plain, layer=layer)


def _check_alike(opened: list[Opened]) -> None:
    first = opened[0]
    for each in opened[1:]:
        if (each.spec, each.preprocessing) != (first.spec, first.preprocessing):
            raise SourceError(
                f"{each.name} ({each.spec['kind']}:{each.spec['name']}) and {first.name} ({first.spec['kind']}:"
                f"{first.spec['name']}) come from different dense models, or see images of different sizes; draw them "
                "one by one"
            )


def _heading(opened: Opened) -> str:
    report = (opened.manifest and opened.manifest.report) or {}
    before, after = report.get("macs_before"), report.get("macs_after")
    name = Path(opened.name).resolve().name
    if not isinstance(before, int) or not isinstance(after, int) or before < 1:
        return name
    return f"{name}\n{100 * (1 - after / before):.0f} % fewer MACs"


def _mean(seen: list[CamImage], position: int) -> float | None:
    values = [image.models[position].correlation for image in seen]
    known = [value for value in values if value is not None]
    return fmean(known) if known else None

"""``norton compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from norton_plugin.cli import options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_folder, output_file, read_path
from norton_plugin.cli.picture_options import Dense, Limit, readable_images, told
from norton_plugin.errors import ArtifactError


def compare(
    out: Output,
    directory: Annotated[
        Path,
        typer.Argument(parser=read_path, callback=existing_folder, metavar="DIR", help="Artefact.", show_default=False),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(parser=read_path, metavar="IMAGES...", help="Files, and folders of images.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=read_path,
            callback=output_file,
            metavar="FILE",
            help="A .png of all images, or a .gif or .mp4 that shows one after the other.",
        ),
    ] = Path("compare.png"),
    dense: Dense = None,
    score: Annotated[
        float, typer.Option("--score", min=0.0, max=1.0, metavar="F", help="Least score of an object to be drawn.")
    ] = 0.5,
    limit: Limit = 8,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, metavar="N", help="Timed calls of each model.")
    ] = 9,
    trust_code: options.TrustCode = False,
) -> None:
    """Draw what the dense and the compressed model find in images side by side, with time and images per second.

    Detectors: boxes, masks, keypoints. Classifiers: the five best classes. Times are medians of calls in turn.

    Example: norton compare fasterrcnn-small photos --dense pretrained -o compare.gif
    """
    from norton_plugin.artifact import write_whole
    from norton_plugin.cli.models import open_dense, open_model
    from norton_plugin.pictures import SUFFIXES, compare_models, film_bytes
    from norton_plugin.zoo.prediction import picture_of

    if output.suffix.lower() not in SUFFIXES:
        raise ArtifactError(f"--output {str(output)!r} should end in one of {', '.join(SUFFIXES)}")
    with out.status(f"opening {directory}"):
        opened = open_model(str(directory), trust_code=trust_code)
        original = open_dense(opened, dense)
    gray = opened.preprocessing.input_size[0] == 1
    found, left = readable_images(out, images, gray=gray, limit=limit)
    with out.status("measuring and drawing"):
        pictures = [picture_of(image, opened.spec, opened.preprocessing) for image in found.values()]
        made = compare_models(
            original, opened.model, pictures, opened.spec, opened.preprocessing, least_score=score, rounds=rounds
        )
        write_whole(output, film_bytes(made.frames, output.suffix.lower()))
    slow, fast = (1e3 * seconds for seconds in made.latency.seconds)
    out.show(
        f"dense {slow:.1f} ms, compressed {fast:.1f} ms for an image ({made.latency.ratios[1]:.2f} times as fast, "
        f"{made.latency.rounds} calls each in turn); {output} shows {len(found)} image{'' if len(found) == 1 else 's'}"
    )
    counts = [
        {"image": str(path), "dense": _count(a, score), "compressed": _count(b, score)}
        for path, (a, b) in zip(found, made.found, strict=True)
    ]
    times = {"dense_ms": slow, "compressed_ms": fast, "speed_up": made.latency.ratios[1], "rounds": made.latency.rounds}
    out.result({"artifact": str(directory), "picture": str(output), **times, "images": counts, "skipped": told(left)})


def _count(prediction: object, score: float) -> dict[str, int]:
    """Return the number of objects drawn, or the class that a classifier sees."""
    from norton_plugin.zoo.prediction import Prediction

    if not isinstance(prediction, Prediction):
        raise TypeError(f"expected a Prediction, not {type(prediction).__name__}")
    if prediction.boxes is None:
        return {"class": int(prediction.scores.argmax())}
    return {"objects": len(prediction.above(score).scores)}

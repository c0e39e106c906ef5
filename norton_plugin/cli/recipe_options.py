"""Options that say what to do to a model, and the changes of a recipe that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from norton_plugin.cli.options import parse_number, parse_rank, parse_setting, parse_whole, split_pair
from norton_plugin.cli.paths import existing_file, read_path
from norton_plugin.errors import RecipeError
from norton_plugin.recipe import BUDGETS, Calibration

_PANEL = "What to do (over the recipe file)"
_SIZES = ("rank", "components", "share")


def _option(name: str, metavar: str | None, text: str, **more: Any) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=_PANEL, **more)


RecipeFile = Annotated[
    Path | None,
    _option("--recipe", "FILE", "Recipe in YAML or JSON.", parser=read_path, callback=existing_file),
]
Rank = Annotated[str | None, _option("--rank", "N|auto|none", "Rank of every layer.")]
RankFor = Annotated[list[str] | None, _option("--rank-for", "PATTERN=N", "Rank of layers named so; repeatable.")]
Level = Annotated[
    str | None,
    _option(
        "--level",
        "NAME",
        "Filters that share components: filter (none do), cluster, layer (all do), spatial (all, as a spatial SVD), or "
        "auto (what errs least).",
    ),
]
Components = Annotated[
    str | None, _option("--components", "M", "Components of every layer, at --level layer, cluster or spatial.")
]
Share = Annotated[str | None, _option("--share", "F", "MACs of every layer as a share of the dense one's, in (0, 1].")]
Clusters = Annotated[
    str | None, _option("--clusters", "K", "Clusters of filters, for --level cluster or auto; not beside --budget.")
]
Budget = Annotated[
    list[str] | None,
    _option(
        "--budget",
        "NAME=F",
        "What the compressed model may cost, as a share of the dense one: macs=0.5, params=0.5, latency=0.5 "
        "(milliseconds on this device, one image, the threads that are set), or several, macs=0.6,latency=0.5; sizes "
        "of all layers are found from it (at --level auto, without --recipe and --level).",
    ),
]
LatencyTable = Annotated[
    Path | None,
    _option(
        "--latency-table",
        "PATH",
        "With --budget latency=F: the latency.json of an artefact, or its directory, in place of measuring; it may "
        "come from another device.",
        parser=read_path,
    ),
]
Reuse = Annotated[
    Path | None,
    _option(
        "--reuse",
        "DIR",
        "With --budget and --data: an artefact of the same model and images whose measured sensitivities are taken in "
        "place of measuring; the one in --output, where it has some.",
        parser=read_path,
    ),
]
Prune = Annotated[
    bool,
    _option(
        "--prune",
        None,
        "With --budget and --calibrate: find which channels go, too, and keep what comes nearest to the dense model on "
        "held-back images: decomposition, pruning, or both; with latency= also one share of all channels. --criterion "
        "is output, where none is given.",
    ),
]
LayerSettings = Annotated[
    list[str] | None,
    _option(
        "--layer",
        "PATTERN:...",
        "Level, rank, components, share and clusters of layers named so, such as 'layer4.*:level=layer,share=0.3'; "
        "repeatable.",
    ),
]
Linear = Annotated[
    bool, _option("--linear", None, "Decompose Linear layers as well, where a share, components or a budget is given.")
]
TargetNMSE = Annotated[str | None, _option("--target-nmse", "F", "Error that --rank auto aims at.")]
Keep = Annotated[str | None, _option("--keep", "F", "Share of the filters to keep, in (0, 1].")]
KeepFor = Annotated[list[str] | None, _option("--keep-for", "PATTERN=F", "Share in layers named so; repeatable.")]
RoundTo = Annotated[
    str | None,
    _option(
        "--round-to", "N|auto", "Channel counts become multiples of it (8); auto: what fills a vector register here."
    ),
]
Criterion = Annotated[
    str | None, _option("--criterion", "NAME", "What goes first: pabs, output (needs --data), l2, random, vbd or csa.")
]
Calibrate = Annotated[
    bool,
    _option("--calibrate", None, "Fit the layers to what they see on the images of --data; takes a minute or more."),
]
Distill = Annotated[
    int | None,
    _option(
        "--distill", "N", "Learn from the dense model on the images of --data, N passes over them; no labels.", min=0
    ),
]
Images = Annotated[int | None, _option("--images", "N", "Most images to use of --data (1024).", min=1)]
Memory = Annotated[
    str | None,
    _option(
        "--memory",
        "SIZE",
        "Memory to fit layers in, such as 4GiB: moments, and what both models hold (the rest of which lies on disk); "
        "images and models come on top.",
    ),
]
Include = Annotated[list[str] | None, _option("--include", "PATTERN", "Only layers named so; repeatable.")]
Exclude = Annotated[list[str] | None, _option("--exclude", "PATTERN", "Never layers named so; repeatable.")]
NoVerify = Annotated[bool, _option("--no-verify", None, "Do not compare pruned groups with masked ones.")]


def decomposition_changes(
    *,
    rank: str | None,
    rank_for: Iterable[str] | None,
    level: str | None,
    components: str | None,
    share: str | None,
    clusters: str | None,
    layer: Iterable[str] | None,
    linear: bool,
    target_nmse: str | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return the settings of ``recipe.Decomposition`` that were given, by name.

    A rank, components or a share replaces whichever of them a recipe file has; so does a level its clusters.

    Raises:
        RecipeError: The text of an option cannot be taken apart; values are left for the recipe to refuse.
    """
    changes = {
        "level": level,
        "components": _parsed(components, parse_whole),
        "share": _parsed(share, parse_number),
        "clusters": _parsed(clusters, parse_whole),
        "ranks": _table("--rank-for", rank_for, parse_rank),
        "layers": _layer_table(layer or ()),
        "linear": linear or None,
        "target_nmse": _parsed(target_nmse, parse_number),
        "seed": seed,
    }
    found = _given(changes)
    if rank is not None:
        found["rank"] = parse_rank(rank)  # "none" leaves all dense, and was given
    if any(name in found for name in _SIZES):
        found = {**dict.fromkeys(_SIZES), **found}
    if level in ("filter", "layer", "spatial"):
        found.setdefault("clusters", None)
    return found


def budget_changes(
    budget: Iterable[str] | None, *, prune: bool = False, table: Path | None = None, reuse: Path | None = None
) -> dict[str, Any]:
    """Return the settings of ``recipe.Budget`` that were given, by name.

    Raises:
        RecipeError: The text of the option cannot be taken apart, or gives a budget twice.
    """
    found: dict[str, Any] = {}
    for text in ",".join(budget or ()).split(",") if budget else ():
        name, _, value = text.partition("=")
        if not name or not value:
            raise RecipeError(f"--budget is {text!r}; expected NAME=F, such as macs=0.5 or latency=0.5")
        if name in found:
            raise RecipeError(f"--budget gives {name} twice; leave one of them out")
        if name not in BUDGETS:
            raise RecipeError(f"--budget is {text!r}; a budget is one of {', '.join(BUDGETS)}")
        found[name] = parse_number(value)
    paths = {name: None if path is None else str(path) for name, path in (("table", table), ("reuse", reuse))}
    return found | _given({"prune": prune or None, **paths})


def pruning_changes(
    *,
    keep: str | None,
    keep_for: Iterable[str] | None,
    round_to: str | None,
    criterion: str | None,
    seed: int | None,
) -> dict[str, Any]:
    """Return the settings of ``recipe.Pruning`` that were given, by name.

    Raises:
        RecipeError: The text of an option cannot be taken apart.
    """
    shares = {"keep": _parsed(keep, parse_number), "keeps": _table("--keep-for", keep_for, parse_number)}
    shares["round_to"] = _parsed(round_to, parse_whole)
    return _given({**shares, "criterion": criterion, "seed": seed})


def calibration_changes(
    *, calibrate: bool, images: int | None, seed: int | None, memory: str | None, data: Path | None
) -> dict[str, Any]:
    """Return the settings of ``recipe.Calibration`` that were given, by name.

    Raises:
        RecipeError: A value is wrong, or something is said of images, and there are none.
    """
    found = _given({"fit": calibrate or None, "images": images, "seed": seed, "memory": memory})
    Calibration(**found)  # a wrong value is told first
    for option, value in (("--images", images), ("--memory", memory)):
        if value is not None and data is None:
            raise RecipeError(f"{option} is given, but no images; give --data DIR too, or leave {option} out")
    return found


def distillation_changes(*, distill: int | None, seed: int | None) -> dict[str, Any]:
    """Return the settings of ``recipe.Distillation`` that were given, by name."""
    return _given({"passes": distill, "seed": seed})


def scope_changes(*, include: list[str] | None, exclude: list[str] | None) -> dict[str, Any]:
    """Return the settings of ``recipe.Scope`` that were given, by name."""
    return _given({"include": include, "exclude": exclude})


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value not in (None, {}, [])}


def _parsed(text: str | None, parse: Callable[[str], Any]) -> Any:
    return None if text is None else parse(text)


def _table(option: str, texts: Iterable[str] | None, parse: Callable[[str], Any]) -> dict[str, Any]:
    pairs = [split_pair(option, text) for text in texts or ()]
    return {pattern: parse(value) for pattern, value in pairs}


def _layer_table(texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read ``PATTERN:NAME=VALUE,...``; a pattern that is given again adds to its settings."""
    table: dict[str, dict[str, Any]] = {}
    for text in texts:
        pattern, _, settings = text.rpartition(":")  # a regular expression may hold other colons
        pairs = [setting.split("=") for setting in settings.split(",")]
        if not pattern or any(len(pair) != 2 or not all(pair) for pair in pairs):
            raise RecipeError(
                f"--layer is {text!r}; expected PATTERN:NAME=VALUE,NAME=VALUE, such as 'layer4.*:level=layer,share=0.3'"
            )
        found = table.setdefault(pattern, {})
        for name, value in pairs:
            if name in found:
                raise RecipeError(f"--layer gives {name} twice for {pattern!r}; leave one of them out")
            found[name] = parse_setting(value)
    return table

"""Random command lines: mostly sound ones with one or two odd values, and some that are noise."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fuzzing.watch import MODULE

_NUMBERS = ("0", "-1", "1", "3", "9", "5000", "1.5", "nan", "inf", "-inf", "1e400", "", " ", "many", "0x10", "9" * 400)
_SHARES = ("0", "0.5", "1", "1.0", "-0.5", "1.01", "nan", "1e-30", "", "half")
_PATTERNS = ("layer1", "*.conv2", "re:layer(", "re:.*", "", "*", "[", "no such", "\0", "\udcff", "re:(a+)+$", "a=2=3")
_RANKS = ("1", "2", "auto", "none", "0", "-3", "2.5", "many", "", "4096", "4097", "99999999999999999999")
_SIZES = ("16", "1x16x16", "3x32x32", "0", "-1", "16x", "x", "", "100000", "1x2x3x4", "2x16x16", "9999999999999", "١٦")
_NOISE = ("--help", "-h", "--version", "--", "-", "--no-such", "inspect", "\0")
_WORDS = (*_NOISE, "'; ls", "--json", "-v", "💥", "\udcff")


@dataclass(frozen=True)
class Places:
    """Paths that a command line may name.

    Attributes:
        artefact: An artefact of ``demo:digits``.
        images: Four pictures of two classes.
        checkpoint: Weights that fit ``demo:digits``.
        config: A config of mmengine.
        odd: Paths that hold something else, or nothing, or cannot be.
        output: Where results go; not there before a case.
    """

    artefact: str
    images: str
    checkpoint: str
    config: str
    odd: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        words: The arguments of ``norton``.
        as_json: Whether ``--json`` is asked for; None where words are noise, so that nobody can say.
        verbose: Whether tracebacks are asked for.
    """

    words: list[str]
    as_json: bool | None
    verbose: bool


def lay_places(root: Path, artefact: Path, checkpoint: Path) -> Places:
    """Make what command lines name.

    Args:
        root: An empty folder.
        artefact: Is linked to, file by file: commands may replace it.
        checkpoint: Is only read.
    """
    for label in ("0", "1"):
        (root / "images" / label).mkdir(parents=True)
        for index in range(2):
            Image.new("L", (16, 16), 60 * index + 20).save(root / "images" / label / f"{index}.png")
    for name in ("empty", "artefact"):
        (root / name).mkdir()
    for file in artefact.iterdir():
        os.link(file, root / "artefact" / file.name)
    (root / "broken.pth").write_bytes(b"PK\3\4 and no more")
    for name, text in _TEXTS.items():
        (root / name).write_text(text)
    for name, where in (("loop", "loop"), ("dangling", "no"), ("link", "artefact")):
        (root / name).symlink_to(where)
    names = [*_TEXTS, "empty", "broken.pth", "loop", "loop/x", "dangling", "link", "nowhere", "file.txt/below"]
    odd = [str(root / name) for name in (*names, "images", "x" * 300, "nowhere/" * 600, "new\nline")]
    odd += ["", ".", "..", "/dev/null", "a\0b", "\udcff", "~", "-", " ", "/proc/self/mem"]
    places = {name: str(root / where) for name, where in _SOUND.items()}
    return Places(checkpoint=str(checkpoint), odd=tuple(odd), **places)


_SOUND = {"artefact": "artefact", "images": "images", "config": "model.py", "output": "out"}
_TEXTS = {
    "file.txt": "text",
    "recipe.yaml": "decomposition: {rank: 2}\n",
    "bad.yaml": "decomposition: [1, 2\n",
    "odd.json": '{"decomposition": {"rank": 2}, "pruning": []}',
    "model.py": "model = dict(type='ResNet', depth=18)\n",
}


def command_line(rng: random.Random, places: Places) -> Line:
    """Draw a command line; ``--json`` and ``-v`` stand where no option can take them for its value."""
    shared = [word for word, share in (("--json", 0.35), ("-v", 0.1)) if rng.random() < share]
    as_json, verbose = "--json" in shared, "-v" in shared
    if rng.random() < 0.2:
        shared += ["--threads", rng.choice(("1", "2", "0", "-1", "100000", "many", "99999999999"))]
    if rng.random() < 0.08:
        return Line([rng.choice((*_WORDS, *places.odd)) for _ in range(rng.randint(0, 4))], None, True)
    command = rng.choice((*_COMMANDS, "compress", "inspect", "inspect"))
    words = _ARGUMENTS[command](rng, places)
    if rng.random() < 0.1:
        words.insert(rng.randrange(len(words) + 1), rng.choice(_NOISE))
    words = [command, *shared, *words] if rng.random() < 0.5 else [*shared, command, *words]
    asks = any(word in words for word in ("-h", "--help", "--version"))  # their answers are text
    return Line(words, None if asks else as_json, verbose)


def _source(rng: random.Random, places: Places) -> str:
    sound = ("demo:digits", "demo:digits", "cifar:resnet20", places.artefact, places.artefact, "timm:test_resnet")
    odd = ("demo:", ":digits", "demo", "cifar:resnet21", f"python:{MODULE}", "python:os:getcwd", "python:no.such:thing")
    odd += ("mmdet:no/such", "timm:no_such_model", "torchvision:\0", "demo:digits\0", "x:y", "timm:resnet18.no", "/")
    return rng.choice(sound if rng.random() < 0.6 else (*odd, *places.odd))


def _model(rng: random.Random, places: Places) -> list[str]:
    words = [_source(rng, places)]
    if rng.random() < 0.25:
        words += ["--checkpoint", rng.choice((places.checkpoint, *places.odd))]
    if rng.random() < 0.2:
        words += ["--num-classes", rng.choice(_NUMBERS)]
    if rng.random() < 0.25:
        words += ["--input-size", rng.choice(_SIZES)]
    if rng.random() < 0.05:
        words += ["--trust-code"]
    return words


def _options(rng: random.Random, choices: dict[str, tuple[str, ...]], share: float) -> list[str]:
    words: list[str] = []
    for name, values in choices.items():
        if rng.random() < share:
            words += [name, rng.choice(values)] if values else [name]
    return words


def _output(rng: random.Random, places: Places) -> list[str]:
    return ["-o", places.output if rng.random() < 0.7 else rng.choice(places.odd)]


def _inspect(rng: random.Random, places: Places) -> list[str]:
    return _model(rng, places) + _options(rng, {"--include": _PATTERNS, "--exclude": _PATTERNS}, 0.2)


def _compress(rng: random.Random, places: Places) -> list[str]:
    pairs = tuple(f"{pattern}={value}" for pattern in ("layer1.*", "", "re:(", "\0") for value in ("2", "x", "", "0.5"))
    choices = {
        "--rank": _RANKS, "--keep": _SHARES, "--rank-for": pairs, "--keep-for": pairs, "--target-nmse": _SHARES,
        "--round-to": _NUMBERS, "--criterion": ("pabs", "output", "l2", "random", "vbd", "csa", "taylor", ""),
        "--include": _PATTERNS, "--exclude": _PATTERNS, "--seed": _NUMBERS, "--recipe": places.odd,
        "--workers": ("0", "-1", "x"),
        "--calibration-data": (places.images, *places.odd), "--no-verify": (),
    }  # fmt: skip
    start = rng.choice((["--rank", "2"], ["--keep", "0.5"], []))
    return _model(rng, places) + start + _options(rng, choices, 0.12) + _output(rng, places)


def _evaluate(rng: random.Random, places: Places) -> list[str]:
    choices = {"--batch-size": _NUMBERS, "--workers": ("0", "-1", "x"), "--seed": _NUMBERS}
    return [*_model(rng, places), "--data", rng.choice((places.images, *places.odd)), *_options(rng, choices, 0.2)]


def _finetune(rng: random.Random, places: Places) -> list[str]:
    choices = {
        "--lr": _NUMBERS, "--batch-size": _NUMBERS, "--optimizer": ("SGD", "AdamW", "LBFGS", ""), "--ema": _NUMBERS,
        "--weight-decay": _NUMBERS, "--warmup-epochs": _NUMBERS, "--label-smoothing": _SHARES, "--clip-grad": _NUMBERS,
        "--teacher": (places.checkpoint, *places.odd), "--distill-weight": _SHARES, "--work-dir": places.odd,
        "--val": (places.images, *places.odd), "--resume": (), "--no-flip": (), "--seed": _NUMBERS,
    }  # fmt: skip
    data = ["--data", places.images if rng.random() < 0.7 else rng.choice(places.odd)]
    epochs = ["--epochs", rng.choice(("1", "1", "1", "0", "-1", "x"))]
    return _model(rng, places) + data + epochs + _options(rng, choices, 0.1) + _output(rng, places)


def _export_config(rng: random.Random, places: Places) -> list[str]:
    config, checkpoint = rng.choice((places.config, *places.odd)), rng.choice((places.checkpoint, *places.odd))
    return [config, checkpoint, *_output(rng, places)]


def _doctor(rng: random.Random, places: Places) -> list[str]:
    return [rng.choice(places.odd)] if rng.random() < 0.5 else []


def _demo(rng: random.Random, places: Places) -> list[str]:
    """Never a sound one: it trains for a minute."""
    wrong = rng.choice((["--seed", "-1"], ["--quick", "x"], ["-o"], ["--no-such"], ["--seed", "x"]))
    return ["--quick", *wrong]


_ARGUMENTS: dict[str, Callable[[random.Random, Places], list[str]]] = {
    "inspect": _inspect,
    "compress": _compress,
    "evaluate": _evaluate,
    "finetune": _finetune,
    "export-config": _export_config,
    "doctor": _doctor,
    "demo": _demo,
}
_COMMANDS = tuple(_ARGUMENTS)

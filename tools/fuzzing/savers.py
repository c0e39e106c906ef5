"""Target: two processes save to one place while two others load from it."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from fuzzing.artefacts import remove
from fuzzing.kills import State, prepare
from fuzzing.savers_common import ARTEFACT, Models, add_own_files, fork, listing, lost_files, which_variant, write
from fuzzing.target import Target
from fuzzing.verdict import Result
from norton_plugin import artifact
from norton_plugin.errors import NortonError

_SECONDS = 4.0
_PAUSE = 0.004  # seconds at most between two saves or loads


def run(state: State, rng: random.Random, number: int) -> Result:
    """Count the loads of some seconds: each has to give one of the two models."""
    place = Path(tempfile.mkdtemp(prefix="savers-", dir=state.folder))
    write(place, state.models, 0)
    add_own_files(place)
    until = time.monotonic() + _SECONDS
    seeds = [rng.getrandbits(32) for _ in range(4)]
    children = [fork(lambda _, s=seed: _save(place, state.models, s, until)) for seed in seeds[:2]]
    children += [fork(lambda _, s=seed: _load(place, state.models, s, until)) for seed in seeds[2:]]
    answers = [child.answer() for child in children]
    wrong = [("a process of savers and loaders failed", str(each)[-600:]) for each in answers if "ok" not in each]
    met = [text for each in answers for text in each.get("wrong", [])]
    wrong += [("a load met something else than one of the models", text) for text in met]
    wrong += _left_behind(state, place)
    remove(place)
    done = [answer for answer in answers if "ok" in answer]
    return Result(sum(each["ok"] for each in done), sum(each["refused"] for each in done), tuple(wrong))


def _save(place: Path, models: Models, seed: int, until: float) -> dict[str, Any]:
    """Save over and over; a save that is told clearly that another one is under way is no harm."""
    rng, saved, refused = random.Random(seed), 0, 0
    while time.monotonic() < until:
        try:
            write(place, models, rng.randrange(2))
            saved += 1
        except NortonError:
            refused += 1
        time.sleep(rng.random() * _PAUSE)
    return {"ok": saved, "refused": refused}


def _load(place: Path, models: Models, seed: int, until: float) -> dict[str, Any]:
    rng, loaded, wrong = random.Random(seed), 0, []
    while time.monotonic() < until:
        try:
            if which_variant(models, artifact.load(place / ARTEFACT, models.dense)) is None:
                wrong.append("a model that nobody saved")
            else:
                loaded += 1
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {str(error)[:150]}")
        time.sleep(rng.random() * _PAUSE)
    return {"ok": loaded, "refused": 0, "wrong": wrong}


def _left_behind(state: State, place: Path) -> list[tuple[str, str]]:
    wrong = []
    if listing(place) != state.names:
        wrong.append(("two savers left more than an artefact", f"{listing(place)}"))
    try:
        if which_variant(state.models, artifact.load(place / ARTEFACT, state.models.dense)) is None:
            wrong.append(("two savers left a model that nobody saved", ""))
    except Exception as error:
        wrong.append(("two savers left no artefact that loads", f"{type(error).__name__}: {error}"))
    if lost_files(place):
        wrong.append(("two savers removed files of the user", f"{lost_files(place)}"))
    return wrong


TARGET = Target(
    name="savers",
    about="two savers and two loaders at one place for 4 s: every load gives one of the models (attempts are counted)",
    cases=3,
    prepare=prepare,
    run=run,
    seconds=90.0,
)

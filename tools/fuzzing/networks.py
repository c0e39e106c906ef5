"""Target: random networks under random recipes, compressed, run, saved and loaded."""

from __future__ import annotations

import copy
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fuzzing.artefacts import facts_of, remove, same_facts
from fuzzing.small_networks import Generated, random_plan, settled
from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from norton_plugin import Recipe, artifact, compress

_TOLERANCE = 1e-4  # what compress says that it accepts
_EXACT = 1e-3  # of outputs in single precision at full rank


@dataclass(frozen=True)
class State:
    """Where artefacts are written."""

    folder: Path


def prepare(folder: Path) -> State:
    """Nothing but the folder is shared."""
    return State(folder)


def run(state: State, rng: random.Random, number: int) -> Result:
    """Compress one network, and look at all that is promised of the result."""
    plan, head = random_plan(rng)
    data = _recipe(rng)
    note(f"{plan} {head} {data}")
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    model = settled(Generated(plan, head), generator)
    image = torch.randn(rng.choice((1, 2)), 3, 17, 17, generator=generator)
    recipe, before = Recipe.from_dict(data), _facts(model, image)
    numbers = _random_state()
    answer = attempt("compress", compress, model, image, recipe)
    untouched = _same_random_state(numbers, _random_state())
    if not _same(before, _facts(model, image)):
        raise Wrong("compress changed the model it was given")
    if not answer.refused:
        compressed, report = answer.value
        _check_report(report)
        _check_outputs(model, compressed, generator, exact=_is_exact(data))
        _check_round_trip(state, Generated(plan, head).eval(), compressed, report, image)
    if not untouched:  # looked at last: whatever else is wrong says more
        raise Wrong("compress left other random numbers than it found")
    return REFUSED if answer.refused else OK


def _recipe(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.2:  # full rank of the largest kernel: every convolution is replaced exactly
        return {"decomposition": {"rank": None, "ranks": {"*": "auto"}, "target_nmse": 1e-9, "allow_dearer": True}}
    rank = rng.choice((None, 1, 2, 3, 9, "auto"))
    keep = rng.choice((1.0, 0.8, 0.5, 0.3, 0.05))
    if rank is None and keep == 1.0:
        keep = 0.5
    exclude = rng.choice(([], [], ["stages.0.*"], ["out"]))
    return {
        "scope": {"exclude": exclude},
        "decomposition": {
            "rank": rank,
            "allow_dearer": rng.random() < 0.6,
            "restarts": rng.randint(1, 2),
            "sweeps": rng.choice((1, 10, 60)),
            "target_nmse": rng.choice((0.01, 0.3)),
            "seed": rng.getrandbits(20),
        },
        "pruning": {
            "keep": keep,
            "round_to": rng.choice((1, 1, 2, 8)),
            "criterion": rng.choice(("pabs", "pabs", "vbd", "csa", "l2", "random")),
            "global_ranking": rng.random() < 0.3,
            "linear": rng.random() < 0.7,
        },
    }


def _is_exact(data: dict[str, Any]) -> bool:
    return data["decomposition"].get("target_nmse") == 1e-9


def _check_report(report: Any) -> None:
    for name, phase in (("decomposition", report.decomposition), ("pruning", report.pruning)):
        done = phase.layers if name == "decomposition" else phase.groups
        if done and not phase.verified:
            raise Wrong(f"the {name} was not verified")
        if done and not (phase.largest_error is not None and phase.largest_error <= _TOLERANCE):
            raise Wrong(f"an error beyond the tolerance was accepted in {name}", f"{phase.largest_error}")
    for layer in report.decomposition.layers:
        if not (0 <= layer.nmse_mean <= layer.nmse_worst):
            raise Wrong("the report holds an NMSE that is not one", f"{layer.nmse_mean} {layer.nmse_worst}")
    for group in report.pruning.groups:
        if not 1 <= group.after < group.before:
            raise Wrong("the report holds a group that lost no channel", f"{group.before} to {group.after}")


def _check_outputs(model: nn.Module, compressed: nn.Module, generator: torch.Generator, *, exact: bool) -> None:
    """Another batch size and another image size than those of the example."""
    for shape in ((3, 3, 17, 17), (1, 3, 24, 20)):
        x = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = model(x)
            found = attempt("the compressed model", compressed, x).value
        if found is None or found.shape != expected.shape or not found.isfinite().all():
            raise Wrong("the compressed model gives something else than finite outputs of the same shape", f"{shape}")
        if exact and float((found - expected).abs().max()) > _EXACT * float(expected.abs().max()):
            raise Wrong("a model without loss gives other outputs", f"{float((found - expected).abs().max())}")


def _check_round_trip(state: State, fresh: nn.Module, compressed: nn.Module, report: Any, image: Tensor) -> None:
    directory = Path(tempfile.mkdtemp(prefix="network-", dir=state.folder))
    try:
        attempt("save", artifact.save, directory, compressed, report.structure, report=report.to_dict())
        answer = attempt("load", artifact.load, directory, fresh)
        if answer.refused:
            raise Wrong("load refused what save had written")
        if not same_facts(facts_of(answer.value), facts_of(compressed)):
            raise Wrong("the loaded model is not the saved one")
        if not torch.equal(answer.value(image), compressed(image)):
            raise Wrong("the loaded model gives other outputs")
    finally:
        remove(directory)


def _facts(model: nn.Module, image: Tensor) -> tuple[Any, Tensor, str]:
    with torch.no_grad():
        return copy.deepcopy(model.state_dict()), model(image), repr(model)


def _same(first: tuple[Any, Tensor, str], second: tuple[Any, Tensor, str]) -> bool:
    states = first[0], second[0]
    same = list(states[0]) == list(states[1]) and all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    return same and torch.equal(first[1], second[1]) and first[2] == second[2]


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _same_random_state(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    numpy = all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    return torch.equal(first[0], second[0]) and numpy and first[2] == second[2]


TARGET = Target(
    name="networks",
    about="random networks under random recipes: verified, run at other sizes, saved and loaded bit-equal",
    cases=50,
    prepare=prepare,
    run=run,
    seconds=120.0,
)

"""Target: the decomposition on weights of any scale, dtype and shape, against exact arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from norton_plugin.cpd import CPDResult, decompose_filters, decompose_layers

# The reported error comes from float64 arithmetic; both bounds are far above its rounding.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-10
_EXACT = 1e-20  # NMSE at full rank
_WRONG_RANKS: tuple[Any, ...] = (0, -1, 10**6, 2**63, 1.5, True, None, "2", float("nan"))


def prepare(folder: Path) -> None:
    """Nothing is shared."""


def run(state: None, rng: random.Random, number: int) -> Result:
    """Decompose a random weight, or ask for what cannot be done."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    if rng.random() < 0.15:
        return _refused_case(rng, generator)
    weight = _weight(rng, generator)
    height, width = weight.shape[2:]
    rank = rng.choice((1, rng.randint(1, height * width), height * width))
    options = {"restarts": rng.randint(1, 3), "sweeps": rng.choice((1, 5, 40)), "seed": rng.getrandbits(31)}
    note(f"{tuple(weight.shape)} {weight.dtype} rank {rank} {options}")
    before = torch.get_rng_state()
    answer = attempt("decompose_filters", decompose_filters, weight, rank, **options)
    if not torch.equal(before, torch.get_rng_state()):
        raise Wrong("decompose_filters used the global random numbers")
    if answer.refused:
        raise Wrong("decompose_filters refused a finite weight", f"{tuple(weight.shape)} {weight.dtype} rank {rank}")
    _check(weight, answer.value, exact=rank == height * width)
    if rng.random() < 0.3:
        again = decompose_layers([weight], rank, **options)[0]
        if not all(torch.equal(a, b) for a, b in zip(again.factors, answer.value.factors, strict=True)):
            raise Wrong("equal seeds gave other factors")
    return OK


def _weight(rng: random.Random, generator: torch.Generator) -> Tensor:
    shape = (rng.randint(1, 5), rng.randint(1, 6), rng.choice((1, 2, 3, 3, 5)), rng.choice((1, 2, 3, 3)))
    dtype = rng.choice((torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16))
    weight = torch.randn(shape, dtype=torch.float64, generator=generator)
    kind = rng.choice(("plain", "plain", "zeros", "twins", "ones", "rank one", "sparse", "one large"))
    if kind == "twins":
        weight[:] = weight[:1]
    elif kind == "ones":
        weight[:] = 1
    elif kind == "rank one":
        weight = weight[:, :, :1, :1] * weight[:, :1, :, :1] * weight[:, :1, :1, :]
    elif kind == "sparse":
        weight *= torch.rand(shape, generator=generator) < 0.2
    elif kind == "one large":
        weight.view(-1)[0] *= 1e12
    weight *= _scales(rng, shape[0], dtype)
    if kind == "zeros" or rng.random() < 0.2:
        weight[rng.randrange(shape[0])] = 0
    limit = torch.finfo(dtype).max
    return weight.clamp(-limit, limit).to(dtype)


def _scales(rng: random.Random, filters: int, dtype: torch.dtype) -> Tensor:
    """Return a power of ten per filter, up to the ends of the dtype, subnormal numbers included."""
    low, high = {torch.float64: (-320, 307), torch.float16: (-7, 4)}.get(dtype, (-42, 37))
    choices = (0, 0, rng.randint(low, high), low, high)
    one = rng.choice(choices)
    exponents = [rng.choice(choices) if rng.random() < 0.5 else one for _ in range(filters)]
    return torch.tensor([float(f"1e{e}") for e in exponents], dtype=torch.float64).view(-1, 1, 1, 1)


def _check(weight: Tensor, result: CPDResult, *, exact: bool) -> None:
    for name, tensor in (*result.factors._asdict().items(), ("nmse", result.nmse)):
        if not tensor.isfinite().all():
            raise Wrong(f"{name} is not finite", _scale_of(weight))
    for index, reported in enumerate(result.nmse.tolist()):
        true, rounded = _errors(weight[index], *(factor[index] for factor in result.factors))
        # Where products are subnormal, the sum of the factors as float64 holds it is as good an answer.
        if not any(abs(reported - each) <= _RELATIVE * each + _ABSOLUTE for each in (true, rounded)):
            raise Wrong("the NMSE is wrong", f"{reported} for {true}, filter of scale {_scale_of(weight[index])}")
        if exact and min(true, rounded) > _EXACT:
            raise Wrong("full rank is not exact", f"NMSE {true}, filter of scale {_scale_of(weight[index])}")


def _scale_of(weight: Tensor) -> str:
    return f"{weight.double().abs().max().item():.1e} {weight.dtype}"


def _errors(weight: Tensor, head: Tensor, vertical: Tensor, horizontal: Tensor) -> tuple[float, float]:
    """NMSE of one filter in exact rational arithmetic: of the factors, and of their product rounded to float64."""
    exact = rounded = energy = Fraction(0)
    terms = [[[Fraction(x) for x in row] for row in factor.tolist()] for factor in (head, vertical, horizontal)]
    kernels = [[[v * h for h in hs] for v in vs] for vs, hs in zip(terms[1], terms[2], strict=True)]
    for channel, plane in enumerate(weight.double().tolist()):
        for y, row in enumerate(plane):
            for x, value in enumerate(row):
                own = Fraction(value)
                found = sum((u[channel] * k[y][x] for u, k in zip(terms[0], kernels, strict=True)), Fraction(0))
                exact += (found - own) ** 2
                rounded += (_as_float64(found) - own) ** 2
                energy += own**2
    if energy == 0:
        return (0.0, 0.0) if exact == 0 else (float("inf"), float("inf"))
    return float(exact / energy), float(rounded / energy)


def _as_float64(value: Fraction) -> Fraction:
    try:
        return Fraction(float(value))
    except OverflowError:  # just beyond the largest number
        return value


def _refused_case(rng: random.Random, generator: torch.Generator) -> Result:
    weight = torch.randn(2, 3, 3, 3, generator=generator)
    rank: Any = 2
    kind = rng.choice(("nan", "infinity", "integers", "complex", "three axes", "empty", "rank", "rank", "option"))
    options: dict[str, Any] = {}
    if kind in ("nan", "infinity"):
        weight.view(-1)[rng.randrange(weight.numel())] = float(kind[:3])
    elif kind == "rank":
        rank = rng.choice(_WRONG_RANKS)
    elif kind == "option":
        options[rng.choice(("restarts", "sweeps", "chunk_bytes"))] = rng.choice((0, -1))
    else:
        changed = {"integers": weight.long(), "complex": weight.to(torch.complex64), "three axes": weight[0]}
        weight = changed.get(kind, weight[:0])
    note(f"{kind} {rank!r} {options}")
    if not attempt("decompose_filters", decompose_filters, weight, rank, **options).refused:
        raise Wrong(f"decompose_filters took what it cannot decompose: {kind}", f"{rank!r} {options}")
    return REFUSED


TARGET = Target(
    name="cpd",
    about="decompositions of weights of 1e-320 to 1e307, against rational arithmetic",
    cases=1000,
    prepare=prepare,
    run=run,
    seconds=60.0,
)

"""compress under stress: wrong patterns, random numbers, weights at the ends of their range, no memory."""

import copy
import random
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.modules.memory import ran_out_of_memory
from norton_plugin.pipeline import calibrating, compress, compression, phases
from norton_plugin.recipe import Decomposition, Pruning, Recipe, Scope
from norton_plugin.surgery import decompose_, from_conv, prune_
from norton_plugin.surgery import prune as prune_module

DECOMPOSITION = Decomposition(rank=2, restarts=2, sweeps=5)
PRUNING = Pruning(keep=0.5, round_to=1)
BOTH = Recipe(decomposition=DECOMPOSITION, pruning=PRUNING)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Two convolutions with a norm between, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Drawing(Net):
    """Draws from every generator as it runs, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        noise = float(np.random.rand()) + random.random() + float(torch.rand(())) + float(torch.randn(3).sum())
        return super().forward(x) + 0 * noise


class Greedy(Net):
    """Asks for a petabyte where a batch has as many images as it was told."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == self.images:
            torch.empty(2**50, dtype=torch.uint8)
        return super().forward(x)


def _homes_of(part: str) -> list[ModuleType]:
    """The files of the pipeline that call a part."""
    return [file for file in (compression, phases, calibrating) if hasattr(file, part)]


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts of ``compress`` that were called."""
    called: list[str] = []
    for name in ("duplicate", "count_cost", "decompose_", "prune_"):
        for home in _homes_of(name):
            original = getattr(home, name)
            monkeypatch.setattr(
                home, name, lambda *a, _name=name, _original=original, **o: called.append(_name) or _original(*a, **o)
            )
    return called


@pytest.mark.parametrize(
    ("changes", "quoted"),
    [
        (dict(pruning=Pruning(keep=0.5, keeps={"layer9": 0.5})), "pruning.keeps pattern 'layer9'"),
        (dict(pruning=Pruning(keeps={"stem": 0.5, "re:body.+9": 0.5})), "pruning.keeps pattern 're:body.+9'"),
        (dict(pruning=Pruning(keeps={"norm": 0.5})), "pruning.keeps pattern 'norm' matches none of the"),
        (dict(pruning=Pruning(keeps={"body.1": 0.5})), "pruning.keeps pattern 'body.1'"),
        (dict(pruning=Pruning(keeps={"re:(": 0.5})), "pattern 're:(' is not a valid regular expression"),
        (dict(pruning=Pruning(keeps={"body.9.*": 1.0})), "pruning.keeps pattern 'body.9.*'"),
        (dict(decomposition=Decomposition(rank=2, ranks={"*.conv9": 2})), "decomposition.ranks pattern '*.conv9'"),
        (dict(decomposition=Decomposition(rank=2, ranks={"head": 2})), "decomposition.ranks pattern 'head'"),
        (dict(decomposition=Decomposition(ranks={"stem9": None})), "decomposition.ranks pattern 'stem9'"),
        (dict(scope=Scope(include=("boody",))), "scope.include pattern 'boody'"),
        (dict(scope=Scope(exclude=("stem", "?"))), "scope.exclude pattern '?'"),
    ],
)  # fmt: skip
def test_every_pattern_is_checked_before_any_work(worked: list[str], changes: dict, quoted: str) -> None:
    sections = dict(decomposition=DECOMPOSITION, pruning=PRUNING) | changes
    steps: list[str] = []
    with pytest.raises(RecipeError) as caught:
        compress(Net().eval(), IMAGE, Recipe(**sections), on_step=steps.append)
    assert quoted in str(caught.value)
    assert worked == steps == []


@pytest.mark.parametrize("pattern", ["stem", "body", "body.0", "*", "re:b.*0", "head"])
def test_patterns_that_mean_a_layer_are_taken(worked: list[str], pattern: str) -> None:
    recipe = Recipe(decomposition=DECOMPOSITION, pruning=Pruning(keep=0.5, keeps={pattern: 0.75}, round_to=1))
    compress(Net().eval(), IMAGE, recipe)
    assert worked == ["duplicate", "count_cost", "decompose_", "prune_", "count_cost"]


@pytest.mark.parametrize(
    ("phase", "work"),
    [
        ("keeps", lambda model: prune_(model, IMAGE, Pruning(keeps={"norm": 0.5}))),
        ("ranks", lambda model: decompose_(model, Decomposition(rank=2, ranks={"norm": 2}))),
    ],
)
def test_the_phases_check_by_themselves_as_well(phase: str, work: Callable[[nn.Module], object]) -> None:
    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RecipeError, match=f"{phase} pattern 'norm'"):
        work(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _states() -> list:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kind, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), [s.tolist() for s in cuda], random.getstate(), kind, keys.tolist(), rest]


def _batches() -> Iterator[Tensor]:
    for _ in range(2):
        random.random()
        np.random.rand()
        yield torch.randn(4, 3, 8, 8)


def _interrupted(model: nn.Module) -> None:
    def stop(name: str) -> None:
        if name == "prune":
            torch.rand(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, IMAGE, BOTH, on_step=stop)


WORK: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    "compress": (Net, lambda model: compress(model, IMAGE, BOTH)),
    "compress a model that draws": (Drawing, lambda model: compress(model, IMAGE, BOTH)),
    "compress with data that draw": (Net, lambda model: compress(model, IMAGE, BOTH, calibration=_batches())),
    "compress, interrupted": (Drawing, _interrupted),
    "decompose": (Net, lambda model: decompose_(model, DECOMPOSITION)),
    "prune": (Net, lambda model: prune_(model, IMAGE, PRUNING)),
    "prune a model that draws": (Drawing, lambda model: prune_(model, IMAGE, PRUNING)),
    "one convolution": (lambda: nn.Conv2d(3, 8, 3), lambda conv: from_conv(conv, 2, sweeps=5)),
}


@pytest.mark.parametrize(("make", "work"), WORK.values(), ids=WORK)
def test_random_states_are_left_as_they_were(
    make: Callable[[], nn.Module], work: Callable[[nn.Module], object]
) -> None:
    model = make()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    before = _states()
    work(model)
    assert _states() == before


def test_the_model_above_does_draw() -> None:
    model = Drawing().eval()
    before = _states()
    model(IMAGE)
    assert all(a != b for a, b in zip(_states(), before, strict=True) if a and a != "MT19937")


@pytest.mark.parametrize("scale", [1e-290, 1e-150, 1e150, 1e290])
def test_weights_at_the_ends_of_double_precision(scale: float) -> None:
    plain = Net().double().eval()
    nn.init.zeros_(plain.stem.bias)
    nn.init.constant_(plain.norm.running_var, 0.5)
    scaled = copy.deepcopy(plain)
    scaled.stem.weight.data *= scale
    # The map that the stem makes is brought back by the next layer.
    scaled.norm = nn.Identity()
    plain.norm = nn.Identity()
    scaled.body[0].weight.data /= scale
    torch.testing.assert_close(scaled(IMAGE.double()), plain(IMAGE.double()))
    reports = [compress(model, IMAGE.double(), BOTH) for model in (plain, scaled)]
    (small, expected), (extreme, found) = reports
    assert [layer.names for layer in found.decomposition.layers] == [("stem",), ("body.0",)]
    for ours, theirs in zip(found.decomposition.layers, expected.decomposition.layers, strict=True):
        assert ours.nmse_mean == pytest.approx(theirs.nmse_mean, rel=1e-6) and 0.01 < theirs.nmse_mean < 1
        assert ours.nmse_worst == pytest.approx(theirs.nmse_worst, rel=1e-6) and ours.fallback_filters == 0
    counts = [[(group.root, group.before, group.after) for group in r.pruning.groups] for r in (found, expected)]
    assert counts[0] == counts[1] == [("stem", 16, 8), ("body.0", 16, 8)]
    torch.testing.assert_close(extreme(IMAGE.double()), small(IMAGE.double()), rtol=1e-4, atol=1e-6)


ERRORS = [
    MemoryError("no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes."),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("part", "step"),
    [("duplicate", "copy"), ("count_cost", "measure"), ("decompose_", "decompose"), ("prune_", "prune"),
     ("reestimate_batch_norm_", "calibrate")],
)  # fmt: skip
def test_memory_errors_name_the_step(monkeypatch: pytest.MonkeyPatch, part: str, step: str, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    for home in _homes_of(part):
        monkeypatch.setattr(home, part, fail)
    with pytest.raises(SurgeryError) as caught:
        compress(model, IMAGE, BOTH, calibration=[IMAGE])
    message = str(caught.value)
    assert message.startswith(f"memory ran out in the step '{step}' ({type(error).__name__}: {str(error)[:20]}")
    assert "the model is unchanged. " in message and "or use a machine or device with more memory" in message
    assert caught.value.__cause__ is error
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("images", "step", "advice"), [(2, "measure", "Give a smaller example"), (3, "calibrate", "Give smaller calib")]
)
def test_a_petabyte_is_asked_of_the_allocator(images: int, step: str, advice: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        compress(Greedy(images).eval(), IMAGE, BOTH, calibration=[torch.randn(3, 3, 8, 8)])
    message = str(caught.value)
    assert f"in the step '{step}'" in message and advice in message and "\n" not in message
    assert ran_out_of_memory(caught.value)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("shape '[2]' is invalid"), ValueError("can't allocate memory"), OSError("no such file")):
        assert not ran_out_of_memory(error)
        monkeypatch.setattr(phases, "decompose_", lambda *_, _error=error, **__: (_ for _ in ()).throw(_error))
        with pytest.raises(type(error)) as caught:
            compress(Net().eval(), IMAGE, BOTH)
        assert caught.value is error


def test_pruning_in_place_is_undone_whatever_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(prune_module, "Surgeon", lambda net, *_: (net.stem.register_buffer("half_done", IMAGE), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        prune_(model, IMAGE, PRUNING)
    assert model.state_dict().keys() == before.keys()

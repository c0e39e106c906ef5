"""A limit on what moments take, held by a counter of all bytes that tensors hold."""

import re

import pytest
import torch
from torch import nn

from norton_plugin import Budget, Recipe, RecipeError, compress
from norton_plugin.budget import plan_budget
from norton_plugin.calibration.held_tensors import HeldTensors
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.calibration.memory import MomentMemory, in_passes
from norton_plugin.calibration.mode_moments import ModeSums
from norton_plugin.calibration.sequential import SequentialPass
from norton_plugin.cost import count_cost
from norton_plugin.recipe import Calibration, Decomposition, Pruning
from norton_plugin.recipe.byte_size import bytes_of, in_words
from tests.held_bytes import HeldBytes, held_by
from tests.networks import Residual, settle

MIB = 2**20


def network() -> nn.Module:
    torch.manual_seed(0)
    return settle(Residual(32))


def batches(count: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


def recipe(memory: str | int | None, **settings) -> Recipe:
    return Recipe(
        decomposition=Decomposition(level="layer", restarts=1, sweeps=5, **({} if settings else {"share": 0.5})),
        calibration=Calibration(fit=True, positions=64, memory=memory),
        **settings,
    )


def test_the_counter_counts_what_is_held():
    kept = []
    assert held_by(lambda: kept.append(torch.zeros(1000))).now == 4000
    freed = held_by(lambda: torch.zeros(1000).add(1).view(10, 100).sum())
    assert freed.now == 0 and 8000 <= freed.peak <= 8100


@pytest.mark.parametrize("level", ["filter", "layer", "spatial"])
def test_fitting_stays_below_the_limit(monkeypatch, level):
    """Of every layer, from the first patch to the last factor; half of it is for what passes hold (held_tensors)."""
    monkeypatch.setattr(HeldTensors, "settle", lambda self: None)
    peaks: list[int] = []
    own = SequentialPass._fit

    def counted(self, pairing, pairs):
        with HeldBytes() as held:
            outcome = own(self, pairing, pairs)
        peaks.append(held.peak)
        return outcome

    monkeypatch.setattr(SequentialPass, "_fit", counted)
    model, images = network(), batches(8, 64)
    reports = []
    for memory in (None, "14MiB"):
        asked = recipe(memory).to_dict()
        asked["decomposition"]["level"] = level
        reports.append(compress(model, images[0][:2], Recipe.from_dict(asked), calibration=images).report)
        peaks.append(0)
    unlimited, limited = peaks[: peaks.index(0)], peaks[peaks.index(0) + 1 : -1]
    assert len(limited) == len(unlimited) == 6
    assert max(limited) <= 7 * MIB < max(unlimited)
    free, bound = (report.calibration for report in reports)
    assert free.chosen == bound.chosen
    for stage, value in free.divergence.items():
        assert bound.divergence[stage] == pytest.approx(value, rel=1e-3)


def test_too_little_says_the_least_that_does():
    model, images = network(), batches(8, 16)
    steps: list[str] = []
    with pytest.raises(RecipeError, match=r"the moments of layers.0.conv1 need") as said:
        compress(model, images[0][:2], recipe("1MiB"), calibration=images, on_step=steps.append)
    assert steps == []
    least = re.search(r"need ([0-9.]+ [KM]iB) at least", str(said.value))[1]
    assert compress(model, images[0][:2], recipe(least), calibration=images).report.calibration.layers


def test_moments_of_all_layers_are_taken_apart_until_they_fit():
    model, images = network(), batches(4, 16)
    asked = {"example_inputs": images[0][:2], "call": lambda net, x: net(x), "positions": 64}
    free = InputMoments(model, images, **asked)
    full = sum(8 * (c.weight[0].numel() ** 2 + c.weight[0].numel()) for c in free.contracts.values())
    with HeldBytes() as held:
        bound = InputMoments(model, images, **asked, memory=MomentMemory(6 * MIB))
    sums = held_by(lambda: None)
    kinds = [type(own) for own in bound._sums.values()]
    assert 0 < kinds.count(ModeSums) < len(kinds) and sums.now == 0
    assert held.now < full * 0.75 and held.peak <= 6 * MIB
    layer = "layers.0.conv2"
    new = free.taken_over(layer, list(range(16)))[0]
    assert torch.allclose(bound.taken_over(layer, list(range(16)))[0].norm(), new.norm(), rtol=0.3)
    with pytest.raises(RecipeError, match="moments of all layers together need"):
        InputMoments(model, images, **asked, memory=MomentMemory(10_000))


def test_sensitivities_are_measured_in_several_passes(monkeypatch):
    import norton_plugin.budget.evidence as evidence

    passes: list[int] = []
    own = evidence.layer_sensitivities

    def counted(model, targets, *args, **kwargs):
        passes.append(len(targets))
        return own(model, targets, *args, **kwargs)

    monkeypatch.setattr(evidence, "layer_sensitivities", counted)
    model, images = network(), batches(8, 16)
    cost = count_cost(model, lambda: model(images[0]))
    free, bound = (
        plan_budget(model, recipe(memory, budget=Budget(macs=0.5)), cost, batches=images) for memory in (None, "1.5MiB")
    )
    assert passes == [5, 3, 2]
    assert bound.macs == pytest.approx(free.macs, rel=0.02) and bound.error == pytest.approx(free.error, rel=0.1)
    with pytest.raises(RecipeError, match="calibration.memory is 100 KiB, but the moments of"):
        plan_budget(model, recipe("100KiB", budget=Budget(macs=0.5)), cost, batches=images)


def test_pruning_by_images_keeps_to_the_limit_too():
    model, images = network(), batches(8, 16)
    settings = {"budget": Budget(macs=0.4, prune=True), "pruning": Pruning(criterion="output", round_to=1)}
    report = compress(model, images[0][:2], recipe("20MiB", **settings), calibration=images).report
    assert report.macs_after <= 0.4 * report.macs_before * 1.001
    with pytest.raises(RecipeError, match="calibration.memory is"):
        compress(model, images[0][:2], recipe("200KiB", **settings), calibration=images)


def test_layers_are_put_into_passes_in_their_order():
    memory = MomentMemory(1000)
    assert in_passes({"a": 300, "b": 300, "c": 300, "d": 700, "e": 10}, memory) == [["a", "b"], ["c"], ["d", "e"]]
    assert in_passes({"a": 300, "b": 10**9}, MomentMemory()) == [["a", "b"]]
    with pytest.raises(RecipeError, match="of d need 1.4 KiB"):
        in_passes({"a": 300, "d": 1000}, memory)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("500 MB", 500_000_000), ("1.5kB", 1500), (64, 64), ("10", 10), ("2g", None)],
)
def test_amounts_of_memory(text, size):
    if size is None:
        with pytest.raises(RecipeError, match="expected an amount of memory"):
            bytes_of("memory", text)
    else:
        assert bytes_of("memory", text) == size


@pytest.mark.parametrize("value", [0, -1, "much", "4 GiBs", True, "nan", ""])
def test_what_is_no_amount_is_refused(value):
    with pytest.raises(RecipeError, match="calibration.memory is"):
        Calibration(memory=value)


def test_words_never_name_too_little():
    assert in_words(1.23 * 2**30) == "1.3 GiB" and in_words(2**20) == "1 MiB" and in_words(10.2) == "11 B"

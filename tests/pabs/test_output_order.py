"""Group OBS against explicit inverses and least squares over all subsets."""

import pytest
import torch

from norton_plugin.errors import DecompositionError
from norton_plugin.pabs import OutputSystem, output_order, output_scores


def system(seed: int, *, channels: int, block: int, outputs: int, extra: int = 0) -> OutputSystem:
    generator = torch.Generator().manual_seed(seed)
    size = channels * block + extra
    samples = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    samples = samples + samples[:, :1]  # correlated
    places = torch.randperm(size, generator=generator)[: channels * block].view(channels, block)
    weight = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    return OutputSystem(samples.T @ samples / len(samples), weight, places)


def error_without(found: OutputSystem, channels: list[int]) -> float:
    """The lowest squared error of outputs of the whole weight, from inputs without these channels."""
    gone = found.places[channels].flatten().tolist()
    kept = [i for i in range(len(found.second)) if i not in gone]
    cross = found.weight @ found.second
    explained = cross[:, kept] @ torch.linalg.inv(found.second[kept][:, kept]) @ cross[:, kept].T
    return float((cross @ found.weight.T - explained).trace())


@pytest.mark.parametrize(("block", "outputs", "extra"), [(1, 3, 0), (4, 5, 6), (3, 40, 2)])
def test_each_removal_is_the_cheapest_and_costs_what_explicit_inverses_say(block, outputs, extra):
    systems = [
        system(0, channels=7, block=block, outputs=outputs, extra=extra),
        system(1, channels=7, block=2, outputs=4),
    ]
    order, costs = output_order(systems)
    assert sorted(order.tolist()) == list(range(7))
    gone: list[int] = []
    for place, (removed, cost) in enumerate(zip(order.tolist(), costs.tolist(), strict=True)):
        before = sum(error_without(each, gone) for each in systems)
        by_candidate = {
            c: sum(error_without(each, [*gone, c]) for each in systems) - before for c in range(7) if c not in gone
        }
        assert removed == min(by_candidate, key=lambda c: by_candidate[c])
        assert cost == pytest.approx(by_candidate[removed], rel=1e-6, abs=1e-8), place
        gone.append(removed)


def test_scores_give_the_order_back():
    found = [system(3, channels=9, block=2, outputs=6)]
    order, costs = output_order(found)
    scores = output_scores(found)
    assert torch.equal(scores.argsort(), order)
    assert scores[order[0]] == pytest.approx(float(costs[0]))
    same = OutputSystem(torch.eye(4), torch.ones(2, 4), torch.arange(4)[:, None])
    assert output_scores([same]).argsort().tolist() == [0, 1, 2, 3]


def test_a_copy_costs_nothing_once():
    second = torch.eye(3, dtype=torch.float64)
    second[0, 1] = second[1, 0] = 1 - 1e-9
    order, costs = output_order([OutputSystem(second, torch.tensor([[5.0, 5.0, 1.0]]), torch.arange(3)[:, None])])
    assert set(order[:1].tolist()) < {0, 1} and float(costs[0]) < 1e-6
    assert costs[1:].tolist() == pytest.approx([1.0, 100.0])


def test_systems_of_different_channels_are_refused():
    with pytest.raises(DecompositionError, match=r"of \[2, 3\] channels"):
        output_order([system(0, channels=c, block=1, outputs=2) for c in (2, 3)])
    with pytest.raises(DecompositionError, match=r"of \[\] channels"):
        output_order([])

"""Ratios of latencies, measured with a clock that only the calls advance."""

import pytest

from norton_plugin.deploy import compare_latency, latency
from norton_plugin.errors import RecipeError


class Clock:
    """Seconds that pass only inside the calls."""

    def __init__(self):
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *durations: float):
        """A call that takes the given durations in turn, then the last one for ever."""
        left = list(durations)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: made.now)
    return made


def test_ratios_are_those_of_the_medians(clock):
    a = clock.call("a", 9.0, 4.0, 1.0, 6.0)  # the warm-up, then 4, 1, 6
    b = clock.call("b", 9.0, 2.0)
    c = clock.call("c", 9.0, 8.0)
    result = compare_latency([a, b, c], rounds=3, warmup=1, budget=1000)
    assert result.seconds == (4.0, 2.0, 8.0)
    assert result.ratios == (1.0, 2.0, 0.5)
    assert result.rounds == 3


def test_calls_take_turns(clock):
    compare_latency([clock.call("a", 1.0), clock.call("b", 1.0)], rounds=2, warmup=1)
    assert "".join(clock.log) == "ab" * 3


def test_one_slow_round_does_not_move_the_median(clock):
    a, b = clock.call("a", 1.0), clock.call("b", 0.5, 50.0, 0.5)
    assert compare_latency([a, b], rounds=5, warmup=0, budget=1000).ratios == (1.0, 2.0)


def test_the_seconds_are_those_of_the_clock_that_is_given(clock):
    calls = [clock.call("a", 1.0), clock.call("b", 1.0)]
    result = compare_latency(calls, rounds=3, clock=lambda: 10 * clock.now)
    assert result.seconds == (10.0, 10.0)


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 3), (9.0, 5), (1000.0, 15)])
def test_the_budget_ends_the_measurement_after_three_rounds_at_least(clock, budget, rounds):
    calls = [clock.call("a", 1.0), clock.call("b", 1.0)]
    assert compare_latency(calls, warmup=0, budget=budget).rounds == rounds


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {}, "1 calls, 15 rounds"),
        (0, {}, "expected at least 2 calls"),
        (2, {"rounds": 0}, "0 rounds"),
        (2, {"warmup": -1}, "-1 to warm up"),
    ],
)
def test_measurements_that_make_no_ratio_are_refused(count, options, message):
    def never() -> None:
        raise AssertionError("not called")

    with pytest.raises(RecipeError, match=message):
        compare_latency([never] * count, **options)

"""What is said of a model made ready for inference."""

from __future__ import annotations

import pytest

from norton_plugin.insight.deployment import advice


def test_macs_that_became_no_time_are_named_with_what_to_do():
    (words,) = advice(0.98, 2.0)
    assert words.startswith("50% of the MACs are saved, but none of the time: narrow layers")
    assert "--budget latency=0.5" in words and "budget=dict(latency=0.5, prune=True)" in words
    assert advice(1.25, 2.5)[0].startswith("60% of the MACs are saved, but only 20% of the time")


@pytest.mark.parametrize(
    ("speed_up", "macs_ratio"),
    [
        (1.34, 2.0),  # a quarter of the time for half of the MACs, and more
        (1.0, 1.05),  # hardly anything was saved
        (1.0, 1.0),
        (1.0, 0.9),  # more MACs than before
    ],
)
def test_nothing_is_said_where_half_of_the_macs_became_time_or_hardly_any_were_saved(speed_up, macs_ratio):
    assert advice(speed_up, macs_ratio) == []

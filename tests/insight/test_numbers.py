"""Numbers as an engineer reads them."""

import pytest

from norton_plugin.insight import change, percent, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (9994, "9.99 k"),
        (9996, "10.0 k"),
        (69_100_000, "69.1 M"),
        (999_600, "1.00 M"),
        (1_819_000_000, "1.82 G"),
        (345_678, "346 k"),
        (2.5e12, "2.50 T"),
    ],
)
def test_short(value, text):
    assert short(value) == text


def test_percent_and_change():
    assert percent(0.125) == "12.5 %"
    assert (change(200, 50), change(50, 200), change(8, 8)) == ("-75.0 %", "+300.0 %", "+0.0 %")
    assert change(0, 5) == "-"

"""A table takes the form that fits the width it is printed on."""

import io

import pytest
from rich.console import Console

from norton_plugin.insight import Column, FittedTable

COLUMNS = (
    Column("layer"),
    Column("kind", optional=1),
    Column("rank", number=True),
    Column("break-\neven", number=True, optional=2),
    Column("reason"),
)


@pytest.fixture
def lines():
    def draw(width, *rows):
        table, stream = FittedTable("Layers", COLUMNS), io.StringIO()
        for row in rows:
            table.add_row(*row)
        Console(file=stream, width=width).print(table)
        return [line.rstrip() for line in stream.getvalue().splitlines()]

    return draw


ROWS = (
    ("layer1.conv1", "CPDBlock", "3", "8", "yes"),
    ("layer1.downsample.0", "Conv2d", "-", "0", "1x1 kernel: a decomposition saves nothing"),
)


def test_all_columns_where_they_fit(lines):
    assert lines(90, *ROWS) == [
        "Layers",
        "                                     break-",
        "layer                kind      rank    even  reason",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 86,
        "layer1.conv1         CPDBlock     3       8  yes",
        "layer1.downsample.0  Conv2d       -       0  1x1 kernel: a decomposition saves nothing",
        "",
    ]


def test_sentences_are_folded_between_words_before_a_column_goes(lines):
    assert lines(62, *ROWS)[5:] == [
        "layer1.downsample.0  Conv2d       -       0  1x1 kernel: a",
        "                                             decomposition",
        "                                             saves nothing",
        "",
    ]


def test_optional_columns_go_first_the_highest_before_the_others_and_are_named(lines):
    assert lines(60, *ROWS)[-2] == "not shown at this width: break-even"
    assert lines(45, *ROWS) == [
        "Layers",
        "layer                rank  reason",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 45,
        "layer1.conv1            3  yes",
        "layer1.downsample.0     -  1x1 kernel: a",
        "                           decomposition",
        "                           saves nothing",
        "not shown at this width: kind, break-even",
        "",
    ]


def test_paragraphs_with_all_columns_where_no_table_fits(lines):
    assert lines(40, *ROWS) == [
        "Layers",
        "layer1.conv1",
        "  kind CPDBlock, rank 3, break-even 8,",
        "    reason yes",
        "layer1.downsample.0",
        "  kind Conv2d, break-even 0, reason 1x1",
        "    kernel: a decomposition saves",
        "    nothing",
        "",
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
def test_no_line_is_wider_and_no_number_broken(lines, width):
    rows = [(f"backbone.layer{i}", "Conv2d", f"{i}.25", "1.18 M", "one sentence of several words") for i in range(9)]
    drawn = lines(width, *rows)
    assert max(map(len, drawn)) <= width
    text = "\n".join(drawn)
    assert all(f"backbone.layer{i}" in text and f"{i}.25" in text for i in range(9))
    assert "break-even" in text or "break-\n" in text
    assert text.count("1.18 M") in (0, 9)


def test_an_empty_table(lines):
    assert lines(40)[0] == "Layers"

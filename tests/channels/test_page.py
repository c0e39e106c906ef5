"""docs/channels.md is run: its code, its outputs, its tables of labels."""

import contextlib
import io
import re

import pytest
import torch
from labelled import classes_of
from torch import nn

from norton_plugin.channels import label_maps, layers, operations
from norton_plugin.channels.tracer import Tracer


@pytest.fixture
def page(repository):
    return (repository / "docs" / "channels.md").read_text()


@pytest.fixture
def _registered_here_only(monkeypatch):
    monkeypatch.setattr(operations, "_OPERATIONS", dict(operations._OPERATIONS))
    monkeypatch.setattr(layers, "_TYPES", dict(layers._TYPES))


def rows(page: str, heading: str) -> list[list[str]]:
    """The body of the table whose first line starts so."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    body = lines[start + 2 :]
    end = next((i for i, line in enumerate(body) if not line.startswith("|")), len(body))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body[:end]]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


def example(page: str) -> dict:
    """What the first block of the page defines."""
    space: dict = {"__name__": "page"}
    exec(re.search(r"```python\n(.*?)```", page, re.S).group(1), space)
    return space


@pytest.mark.usefixtures("_registered_here_only")
def test_every_block_runs_and_prints_what_the_page_says(page):
    space: dict = {"__name__": "page"}
    printed, blocks = "", re.findall(r"```(python|text)\n(.*?)```", page, re.S)
    assert [kind for kind, _ in blocks].count("text") == 3
    for kind, text in blocks:
        if kind == "text":
            assert printed == text
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(text, space)
        printed = out.getvalue()


def test_labels_of_the_weights(page):
    axes = example(page)["graph"]._axes.axes
    labels = {(axis.name, axis.dim): list(range(axis.base, axis.base + axis.size)) for axis in axes}
    for name, filters, inputs in rows(page, "| weight |"):
        assert labels.pop((name, 0)) == numbers(filters) and labels.pop((name, 1)) == numbers(inputs)
    assert labels == {}


def test_labels_of_every_output(page, monkeypatch):
    seen = []
    original = Tracer._label_outputs

    def record(self, call):
        original(self, call)
        maps = self.trace.labels_of(call.out).maps
        layer = next((n for n, m in seen_model.named_modules() if m is self.trace.module and n), "")
        seen.append([call.name, layer, [label_maps.along(m, 1).tolist() for m in maps]])

    space = example(page)
    seen_model = space["model"]
    monkeypatch.setattr(Tracer, "_label_outputs", record)
    graph = type(space["graph"])(seen_model, space["image"])
    table = [[name, layer, [numbers(labels)]] for name, layer, labels, _ in rows(page, "| operation | of |")]
    assert [entry for entry in seen if entry[0] != "detach"] == table
    unions, pins = classes_of(graph._table)
    assert [numbers(labels) for _, labels, _ in rows(page, "| class |")] == unions
    assert [int(name) for name, _, _ in rows(page, "| class |")] == [group[0] for group in unions]
    assert pins == dict.fromkeys([5, 6, 7], "fixed-width-layer") | dict.fromkeys(range(22, 27), "model-output")


def test_every_file_that_the_page_names_exists(page, repository):
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) >= 6 and all((repository / name).is_file() for name in named)
    room = repository / "norton_plugin" / "channels"
    files = set(re.findall(r"[(`, ]`?(\w+\.py)`", page)) - {"test_rules.py"}
    assert len(files) > 15 and all((room / name).is_file() for name in files)


def test_the_example_of_the_page_by_plain_pytorch(page):
    space = example(page)
    model, image = space["model"], space["image"]
    keep = [0, 2, 3]
    with torch.no_grad():
        x = nn.functional.conv2d(image, model.stem.weight[keep]).relu()
        y = x + nn.functional.conv2d(x, model.inner.weight[keep][:, keep])
        z = torch.cat([y, nn.functional.conv2d(y, model.side.weight[[1]][:, keep])], 1)
        expected = nn.functional.conv2d(z, model.head.weight[:, [*keep, 5]])
        space["graph"].prune("stem", [1])
        space["graph"].prune("side", [0])
        torch.testing.assert_close(model(image), expected)

"""What classifiers return, and what is said where it is no tensor of scores."""

from collections import namedtuple

import pytest
import torch

from norton_plugin.errors import SourceError
from norton_plugin.zoo.class_scores import class_scores

SCORES = torch.zeros(1, 4)
Pair = namedtuple("Pair", ["maps", "scores"])


def test_scores_are_returned():
    assert class_scores(SCORES, of="net") is SCORES


@pytest.mark.parametrize(
    ("output", "came", "where"),
    [
        (torch.zeros(1, 4, 2, 2), "shape (1, 4, 2, 2)", None),
        ({"loss": SCORES, "logits": SCORES}, "dict with 'loss', 'logits'", "'logits'"),
        ({"first": 1, "second": SCORES}, "dict with 'first', 'second'", "'second'"),
        ({"maps": torch.zeros(1, 4, 2, 2)}, "dict with 'maps'", None),
        ({}, "dict with nothing in it", None),
        ((torch.zeros(3), SCORES), "tuple of 2", "1"),
        (Pair(1, SCORES), "Pair of 2", "1"),
        (None, "NoneType", None),
    ],
)
def test_what_came_what_was_expected_and_what_to_do(output, came, where):
    with pytest.raises(SourceError) as said:
        class_scores(output, of="net")
    words = f"net returns {came}; expected a tensor of shape (1, classes)"
    if where is not None:
        words += "; give a source of your own, python:MODULE:FUNCTION, whose model returns "
        words += f"output[{where}] alone (docs/transformers.md shows one)"
    assert str(said.value) == words

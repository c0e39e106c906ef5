"""What is drawn into a picture, and said below it."""

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("torchvision")

from norton_plugin.pictures import drawing
from norton_plugin.zoo.prediction import Prediction


def found(boxes, labels, scores):
    return Prediction(scores=torch.tensor(scores), labels=torch.tensor(labels), boxes=torch.tensor(boxes).float())


PICTURE = torch.zeros(3, 100, 200, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 0], "3 objects: 2 RBC, 1 WBC"),
        ([1], "1 object: 1 WBC"),
        ([0, 0, 1, 1, 2, 3], "6 objects: 2 RBC, 2 WBC, 1 class 2, ..."),
    ],
)
def test_objects_are_counted_by_class(labels, words):
    boxes = [[10.0 * i, 10, 10.0 * i + 5, 20] for i in range(len(labels))]
    image, said = drawing.draw(PICTURE, found(boxes, labels, [0.9] * len(labels)), ("RBC", "WBC"))
    assert said == words and image.size == (200, 100)


def test_no_object():
    none = Prediction(scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    assert drawing.draw(PICTURE, none)[1] == "0 objects"


def test_a_label_that_would_cover_a_better_one_is_left_out():
    boxes = torch.tensor([[10, 10, 50, 40], [12, 15, 50, 40], [150, 12, 190, 40], [12, 60, 50, 90]]).float()
    shown = drawing._readable(boxes, torch.tensor([0.6, 0.9, 0.7, 0.5]), ["a: 0.60", "a: 0.90", "a: 0.70", "a: 0.50"])
    assert shown == [None, "a: 0.90", "a: 0.70", "a: 0.50"]

import math

import pytest
import torch
import torch.nn.functional as F

from norton_plugin.errors import RecipeError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from norton_plugin.distillation import distillation_loss
from norton_plugin.mm import TopKAccuracy
from norton_plugin.mm.classification.metrics import label_ranks

SCORES = torch.tensor(
    [
        [0.7, 0.1, 0.1, 0.1],  # label 0: best
        [0.4, 0.3, 0.2, 0.1],  # label 1: second
        [0.4, 0.3, 0.2, 0.1],  # label 2: third
        [0.4, 0.3, 0.2, 0.1],  # label 3: last
    ]
)
LABELS = torch.tensor([0, 1, 2, 3])


def test_ranks_by_hand():
    assert label_ranks(SCORES, LABELS).tolist() == [0, 1, 2, 3]


def test_constant_and_nan_scores_are_never_right():
    assert label_ranks(torch.ones(1, 5), torch.tensor([0])).tolist() == [4]
    assert label_ranks(torch.full((1, 5), math.nan), torch.tensor([0])).tolist() == [4]


def test_metric_over_two_batches():
    metric = TopKAccuracy(topk=(1, 2, 3))
    samples = [{"pred_score": s, "gt_label": y} for s, y in zip(SCORES, LABELS, strict=True)]
    metric.process(None, samples[:3])
    metric.process(None, samples[3:])
    assert metric.evaluate(4) == {"accuracy/top1": 25.0, "accuracy/top2": 50.0, "accuracy/top3": 75.0}


def test_ranks_agree_with_torch_topk():
    scores, labels = torch.randn(200, 10), torch.randint(10, (200,))
    for k in (1, 3, 5):
        hits = (scores.topk(k, 1).indices == labels[:, None]).any(1)
        assert torch.equal(label_ranks(scores, labels) < k, hits)


@pytest.mark.parametrize("topk", [(), 0, (1, 0)])
def test_impossible_k(topk):
    with pytest.raises(RecipeError, match="topk"):
        TopKAccuracy(topk)


def test_distillation_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4), softmax(0, 0) = (1/2, 1/2)
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(distillation_loss(student, teacher, temperature=1.0)) == pytest.approx(expected, rel=1e-6)
    assert float(distillation_loss(2 * student, 2 * teacher, temperature=2.0)) == pytest.approx(4 * expected, rel=1e-6)


def test_distillation_is_the_kl_divergence_of_torch():
    student, teacher = torch.randn(2, 6, 5)
    own = F.kl_div(F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1), reduction="batchmean") * 9
    assert float(distillation_loss(student, teacher, temperature=3.0)) == pytest.approx(float(own), rel=1e-5)

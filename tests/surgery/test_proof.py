"""What counts as proof that a pruned model is right, and what does not."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from norton_plugin.modules.running import compared_outputs, in_double_precision
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import blocking

HALF = Pruning(keep=0.5, round_to=1)


class Net(nn.Module):
    """Two convolutions and a head; ``finish`` makes the output of the head's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.head = nn.Conv2d(16, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def finish(self, x: Tensor):
        return x

    def forward(self, x: Tensor):
        return self.finish(self.head(self.middle(self.body(x))))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def pruned(net, image):
    torch.manual_seed(0)
    report = prune_(net.eval(), image, HALF, require=False)
    return {group.root: group.error for group in report.groups}, {s.name: s.code for s in report.skipped}


def test_a_detector_that_finds_nothing_is_compared_by_its_last_layers(image):
    class Detector(Net):
        def middle(self, x):
            return x / self.body[2].out_channels if self.wrong else x

        def finish(self, x):
            boxes = x.permute(0, 2, 3, 1).reshape(-1, 4)
            return boxes[boxes.amax(1) > 1e6]

    net = Detector()
    net.wrong = False
    groups, reasons = pruned(net, image)
    assert set(groups) == {"body.0", "body.2"} and all(error < 1e-5 for error in groups.values())
    net = Detector()
    net.wrong = True
    groups, reasons = pruned(net, image)
    assert set(groups) == {"body.0"} and reasons["body.2"] == "differs"


def test_a_model_that_returns_no_tensor_proves_nothing(image):
    class Counting(Net):
        def finish(self, x):
            return float(x.sum())

    groups, reasons = pruned(Counting(), image)
    assert groups == {} and set(reasons) == {"body.0", "body.2", "head"}
    assert set(reasons.values()) == {"unproved"}


def test_what_is_computed_for_nobody_keeps_its_width_and_proves_the_layers_before_it(image):
    class Silent(Net):
        def finish(self, x):
            return None

    groups, reasons = pruned(Silent(), image)
    assert set(groups) == {"body.0", "body.2"} and all(error < 1e-5 for error in groups.values())
    assert reasons == {"head": "not-consumed"}


def test_what_is_handed_to_compiled_code_keeps_its_width(image):
    """The operator reads the numbers of ``offset`` past torch, as deformable convolutions do."""

    class Deformable(Net):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(16, 18, 3, padding=1)

        def middle(self, x):
            shift = float(np.asarray(self.offset(x)[0].tolist())[-1].mean())
            return x + shift

    groups, reasons = pruned(Deformable(), image)
    assert set(groups) == {"body.0", "body.2"} and all(error < 1e-5 for error in groups.values())
    assert reasons["offset"] == "not-consumed"


def test_the_head_of_a_detector_that_finds_nothing_keeps_its_width(image):
    """Scores of all boxes and classes in one row, cut off at a threshold that none of them reaches."""

    class Threshold(Net):
        def finish(self, x):
            rows = x.view(1, -1, 2, 8, 8).permute(0, 3, 4, 1, 2).reshape(1, -1, 2)[0]
            scores = rows.sigmoid().flatten()
            keep = scores > 2.0
            scores, order = scores[keep].topk(0)
            return {"scores": scores, "labels": torch.where(keep)[0][order] % rows.shape[-1]}

    groups, reasons = pruned(Threshold(), image)
    assert set(groups) == {"body.0", "body.2"} and all(error < 1e-5 for error in groups.values())
    assert reasons == {"head": "model-output"}


def test_a_layer_that_runs_on_nothing_stays(image):
    class Idle(Net):
        def __init__(self):
            super().__init__()
            self.mask = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))

        def middle(self, x):
            self.mask(x[:0])
            return x

    net = Idle()
    groups, reasons = pruned(net, image)
    assert set(groups) == {"body.0"} and reasons["body.2"] == "nothing-to-compute"
    assert reasons["mask.0"] == reasons["mask.2"] == "nothing-to-compute"
    assert blocking(prune_(Idle().eval(), image, HALF).skipped)


def test_chance_and_memory_do_not_count_as_differences(image):
    class Drawing(Net):
        calls = 0

        def middle(self, x):
            self.calls += 1
            return self.calls * x * torch.rand(1, 1, 8, 8)

    groups, _ = pruned(Drawing(), image)
    assert set(groups) == {"body.0", "body.2"} and max(groups.values()) < 1e-6
    net, state = Drawing().eval(), torch.random.get_rng_state()
    compared_outputs(net, image)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_sorted_is_compared_before_it_is_sorted(image):
    """The scores are as good as equal: rounding decides about their order."""

    class Sorting(Net):
        def finish(self, x):
            order = (x[:, 0].flatten() * 1e-9 + 1.0).argsort()
            return x.flatten(2)[..., order]

    groups, _ = pruned(Sorting(), image)
    assert set(groups) == {"body.0", "body.2"} and max(groups.values()) < 1e-5


def test_rounding_that_is_blown_up_is_looked_at_in_double_precision(image):
    class Steep(Net):
        def finish(self, x):
            return (1e6 * x).sin()

    net = Steep()
    groups, _ = pruned(net, image)
    assert set(groups) == {"body.0", "body.2"} and max(groups.values()) < 1e-6
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_double_precision_gives_back_the_very_same_tensors(image):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    expected = net(image)
    with in_double_precision(net):
        assert compared_outputs(net, image, dtype=torch.float64)[0].dtype == torch.float64
        assert net[1].running_mean.dtype == torch.float64
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert all(after[name] is tensor and tensor.data_ptr() == pointers[name] for name, tensor in tensors.items())
    assert torch.equal(net(image), expected)

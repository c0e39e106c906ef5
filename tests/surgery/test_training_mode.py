"""Layers that evaluation does not run: training runs them, or an image of another size."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import blocking

PRUNING = Pruning(keep=0.5, round_to=1)


class Auxiliary(nn.Module):
    """A head that training alone runs, on channels that the trunk passes on."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3)
        self.head = nn.Conv2d(8, 4, 1)
        self.side = nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 4, 1))

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        out = self.head(self.body(x))
        return (out, self.side(x.mean((2, 3), keepdim=True))) if self.training else out


class Sized(nn.Module):
    """A layer that large images alone run."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"inner": nn.Conv2d(3, 8, 3), "extra": nn.Conv2d(8, 8, 3, padding=1)})
        self.tail = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        y = self.block["inner"](x)
        if x.shape[-1] > 16:
            y = self.block["extra"](y)
        return self.tail(y)


def test_what_training_alone_runs_follows_the_trunk(image):
    torch.manual_seed(0)
    net = Auxiliary().eval()
    before = copy.deepcopy(net)
    report = prune_(net, image, PRUNING)
    assert {group.root for group in report.groups} == {"stem", "body"}
    assert net.stem.out_channels == net.side[0].in_channels == net.body.in_channels == 4
    assert [(s.name, s.code) for s in report.skipped if s.name == "side.0"] == [("side.0", "not-run")]
    assert not blocking(report.skipped) and not net.training
    # The pass in training mode changed no statistics: those that stay are some of those that were.
    assert set(net.norm.running_mean.tolist()) <= set(before.norm.running_mean.tolist())
    assert int(net.norm.num_batches_tracked) == 0
    out, side = net.train()(image)
    (out.sum() + side.sum()).backward()
    assert side.shape == (2, 4, 1, 1) and net.side[0].weight.grad.shape == (6, 4, 1, 1)


def test_a_single_image_is_doubled_for_the_norms_of_training(image):
    net = Auxiliary().eval()
    prune_(net, image[:1], PRUNING)
    assert net.side[0].in_channels == 4
    assert net.train()(image)[1].shape == (2, 4, 1, 1)


def test_what_neither_pass_runs_keeps_what_it_may_read(image):
    net = Sized().eval()
    report = prune_(net, image[..., :16, :16], PRUNING)
    assert {group.root for group in report.groups} == {"tail.0"}
    [entry] = blocking(report.skipped)
    assert (entry.name, entry.code) == ("block.inner", "may-be-read")
    assert entry.reason == "block.extra, which neither the example nor training runs, may read its channels"
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 4, 28, 28)


def test_a_larger_example_frees_them(image):
    net = Sized().eval()
    report = prune_(net, torch.randn(1, 3, 32, 32), PRUNING)
    assert not blocking(report.skipped) and net.block["extra"].in_channels == 4


def test_parameters_of_a_loss_and_tables_are_no_idle_layers(image):
    class Prior(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(4, 2))

    class WithLoss(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
            self.prior, self.names = Prior(), nn.Embedding(4, 8)

        def forward(self, x):
            return self[2](self[1](self[0](x)))

        def loss(self, x, labels):
            return (self(x).mean((2, 3)) - self.prior.mean[labels, 0]).square().sum() + self.names(labels).sum()

    report = prune_(WithLoss().eval(), image, PRUNING)
    assert [group.root for group in report.groups] == ["0"] and not blocking(report.skipped)


def test_training_that_cannot_be_run_pins_what_its_layers_may_read(image):
    class Needy(Auxiliary):
        def forward(self, x):
            if self.training and not hasattr(self, "targets"):
                raise RuntimeError("training needs targets")
            return super().forward(x)

    net = Needy().eval()
    report = prune_(net, image, PRUNING, require=False)
    assert {entry.code for entry in blocking(report.skipped)} == {"may-be-read"}
    net.targets = True
    assert net.train()(image)[1].shape == (2, 4, 1, 1)


def test_a_branch_on_training_that_breaks_is_undone(image):
    """All layers run in both modes; what training does to their channels, evaluation never shows."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.stem(x)
            return self.head(y + torch.randn(1, 8, 1, 1) if self.training else y)

    net = Noisy().eval()
    report = prune_(net, image, PRUNING, require=False)
    [entry] = blocking(report.skipped)
    assert (entry.name, entry.code) == ("stem", "breaks-around") and net.stem.out_channels == 8
    assert net.train()(image).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_auxiliary_classifiers_of_torchvision_train(name, size):
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: pip install 'norton-plugin[timm]'")
    torch.manual_seed(0)
    net = getattr(models, name)(weights=None, init_weights=False, aux_logits=True, num_classes=10).eval()
    report = prune_(net, torch.randn(1, 3, size, size), Pruning(keep=0.5), time_limit=200)
    assert not blocking(report.skipped)
    aux = [module for name, module in net.named_modules() if name.lower() in ("aux1", "aux2", "auxlogits")]
    first = [next(m for m in module.modules() if isinstance(m, nn.Conv2d)) for module in aux]
    full = {"googlenet": [512, 528], "inception_v3": [768]}[name]
    assert [conv.in_channels for conv in first] != full
    outputs = net.train()(torch.randn(2, 3, size, size))
    sum(output.sum() for output in outputs).backward()
    assert all(output.shape == (2, 10) for output in outputs)
    assert all(conv.weight.grad.abs().sum() > 0 for conv in first)

"""Networks with operations that few models have: pruned, and compared with what the kept channels compute."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import blocking

PRUNING = Pruning(keep=0.5, round_to=1)


class Spectral(nn.Module):
    """A filter of frequencies between two convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        spectrum = torch.fft.rfft2(x, norm="ortho")
        parts = self.mix(torch.cat([spectrum.real, spectrum.imag], 1)).relu()
        real, imaginary = parts.chunk(2, 1)
        return self.head(x + torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho"))


class Prototypes(nn.Module):
    """Classes by the distances of features to learned vectors."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), norm
        self.vectors = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return torch.cdist(self.stem(x).relu().mean((2, 3)), self.vectors, p=self.norm)


class Pairs(nn.Module):
    """Two paths that meet in a bilinear layer."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 12, 3)
        self.pairs, self.head = nn.Bilinear(8, 12, 6), nn.Linear(6, 4)

    def forward(self, x):
        left, right = (layer(x).relu().mean((2, 3)) for layer in (self.left, self.right))
        return self.head(self.pairs(left, right))


def test_a_bilinear_layer_reads_two_lists_of_channels_and_makes_a_third(image):
    torch.manual_seed(0)
    net = Pairs().eval()
    dense = copy.deepcopy(net)
    report = prune_(net, image, PRUNING)
    assert not blocking(report.skipped) and report.largest_error < 1e-6
    pairs = net.pairs
    assert (pairs.in1_features, pairs.in2_features, pairs.out_features) == (4, 6, 3) == (
        net.left.out_channels, net.right.out_channels, net.head.in_features)  # fmt: skip
    assert pairs.weight.shape == (3, 4, 6)
    # The dense network with zeros in place of all numbers that are gone.
    for name in ("pairs.weight", "head.weight"):
        tensor = dense.get_parameter(name)
        tensor.data.masked_fill_(~torch.isin(tensor, net.get_parameter(name)), 0)
    torch.testing.assert_close(net(image), dense(image))


class Experts(nn.Module):
    """A convolution by code of one's own, whose kernel is mixed for each image from those of two experts."""

    def __init__(self):
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.kernels, self.head = nn.Parameter(torch.randn(2, 6 * 8 * 9)), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        kernels = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels).view(len(x) * 6, 8, 3, 3)
        maps = nn.functional.conv2d(x.flatten(0, 1)[None], kernels, groups=len(x))
        return self.head(maps.view(len(x), 6, *maps.shape[2:]))


@pytest.mark.parametrize("batch", [1, 2])
def test_what_a_computed_kernel_reads_stays_for_a_reason_that_names_it(image, batch):
    torch.manual_seed(0)
    report = prune_(Experts().eval(), image.repeat(batch, 1, 1, 1), PRUNING)
    assert {entry.name: entry.cause.code for entry in report.skipped}["stem"] == "computed-kernel"


class Regions(nn.Module):
    """A second head reads the regions in which the first finds something: none."""

    def __init__(self):
        super().__init__()
        self.stem, self.neck, self.first = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x):
        x = self.neck(self.stem(x))
        found = self.first(x).sigmoid()
        regions = x[:, :, :2, :2][found[:, 0].amax((1, 2)) > 1]
        return found, self.second(regions)


def test_what_a_head_without_regions_reads_stays_and_the_head_runs_on_others(image):
    for verify in (True, False):
        torch.manual_seed(0)
        net = Regions().eval()
        report = prune_(net, image, PRUNING, verify=verify)
        reasons = {entry.name: entry.cause.code for entry in blocking(report.skipped)}
        assert {reasons[name] for name in ("neck", "second.0")} == {"nothing-to-compute"}
        assert (net.stem.out_channels, net.neck.out_channels) == (4, 8)
        assert net.second(torch.rand(3, net.neck.out_channels, 2, 2)).shape == (3, 2, 2, 2)


def test_a_fourier_transform_passes_channels_on(image):
    torch.manual_seed(0)
    net = Spectral().eval()
    report = prune_(net, image, PRUNING)
    assert not blocking(report.skipped) and report.largest_error < 1e-6
    assert net.stem.out_channels == net.head.in_channels == 4
    assert (net.mix.in_channels, net.mix.out_channels) == (8, 8)


def test_distances_are_those_of_the_kept_channels(image):
    for norm in (1.0, 2.0):
        torch.manual_seed(0)
        net = Prototypes(norm).eval()
        stem, vectors = net.stem.weight.clone(), net.vectors.clone()
        report = prune_(net, image, PRUNING)
        assert not blocking(report.skipped) and report.largest_error < 1e-6
        kept = [i for i in range(8) if any(torch.equal(stem[i], row) for row in net.stem.weight)]
        assert len(kept) == 4 and torch.equal(net.vectors, vectors[:, kept])

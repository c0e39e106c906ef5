"""Where layers stand in a run, and what repairs the sum that they are part of."""

import copy

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.calibration.held_tensors import HeldMemory, tensors_of
from norton_plugin.calibration.lockstep import PausableRun, started, trace_layers, watched
from tests.networks import Residual, settle


class Zoo(nn.Module):
    """Every way from a layer to a sum that can be followed, and some that cannot."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 1, stride=2)
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.padded = nn.Conv2d(8, 8, 3, padding=1)
        self.scaled = nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.linspace(0.5, 2, 8))
        self.gated = nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.read = nn.Conv2d(8, 8, 1)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.stem(x))
        y = self.norm(self.first(x))
        y += self.down(x)  # in place, the shortcut is computed last
        x = torch.relu(y)
        x = self.padded(x) + nn.functional.pad(x[:, :6], (0, 0, 0, 0, 1, 1))  # a shortcut without layers
        z = self.scaled(x.permute(0, 2, 3, 1)) * self.gamma
        x = x + nn.functional.dropout(z.permute(0, 3, 1, 2), 0.5, self.training)
        x = x + self.gated(x) * torch.sigmoid(x)
        x = x + self.twice(self.twice(x))
        z = self.read(x)
        x = x + z + z.mean()
        return self.out(x.mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return settle(Zoo())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def layers_of(model: nn.Module) -> dict[nn.Module, str]:
    return {m: n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_what_is_found(model, x):
    names = layers_of(model)
    places = {names[place.module]: place for place in trace_layers(model, list(names), lambda: model(x))}
    assert list(places) == ["stem", "first", "down", "padded", "scaled", "gated", "twice", "read", "out"]
    assert [name for name, place in places.items() if place.other is not None] == ["down", "padded", "scaled"]
    assert [name for name, place in places.items() if place.norm is not None] == ["first"]
    assert places["twice"].calls == 2 and not any(place.chosen for place in places.values())
    norm = model.norm
    expected = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(places["first"].channel_scale, expected.detach().double())
    torch.testing.assert_close(places["scaled"].channel_scale, model.gamma.detach())


@pytest.mark.parametrize("name", ["padded", "scaled", "layers.0.conv2", "layers.1.conv2"])
def test_the_correction_restores_the_sum(model, x, name):
    """Where a layer gives its dense output plus the correction, the model behind it computes what it should."""
    if name.startswith("layers"):
        torch.manual_seed(0)
        model = settle(Residual(8))
    other = copy.deepcopy(model)
    other.stem.weight.data.mul_(1.3)  # an error early in the stream
    names = layers_of(model)
    places = trace_layers(model, list(names), lambda: model(x))
    place = next(p for p in places if names[p.module] == name)
    dense, own = model.get_submodule(name), other.get_submodule(name)
    wanted = [source[0] for source in place.other.sources]
    with watched([*names, *layers_of(other)]):
        runs = [lambda: model(x)], [lambda: other(x)]
        memory = HeldMemory(given=tensors_of(model, other, x))
        with (
            started(runs[0], wanted=wanted, memory=memory) as (a,),
            started(runs[1], wanted=wanted, memory=memory) as (b,),
        ):
            assert a.until(dense, "after") and b.until(own, "before")
            summands = [place.other.compute(run.counter.kept) for run in (a, b)]
            assert not torch.allclose(*summands)
            target = a.output + place.correction(*summands)
    with torch.no_grad():
        expected, plain = model(x), other(x)
        own.register_forward_hook(lambda module, args, output: target)
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(plain, expected, rtol=1e-2, atol=1e-2)


def test_a_channel_that_counts_for_nothing_is_not_corrected(x):
    torch.manual_seed(0)
    model = settle(Residual(8))
    model.layers[0].norm2.weight.data[2] = 0
    names = layers_of(model)
    place = next(p for p in trace_layers(model, list(names), lambda: model(x)) if names[p.module] == "layers.0.conv2")
    ones = torch.ones(1, 8, 4, 4)
    correction = place.correction(ones, 0 * ones)
    assert bool((correction[:, 2] == 0).all()) and bool((correction[:, :2] != 0).all())


def test_what_values_choose_is_marked():
    class Chooser(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            best = x.topk(2, dim=1).values
            return self.b(torch.cat([best, best], 1)) + self.c(x)

    model = Chooser().eval()
    places = trace_layers(model, [model.a, model.b, model.c], lambda: model(torch.randn(3, 4)))
    assert [place.chosen for place in places] == [False, True, False]


def test_norms_written_out_and_norms_used_twice():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4, 4))
            self.norm = nn.BatchNorm2d(4)
            for name in ("weight", "variance", "shift"):
                self.register_buffer(name, torch.rand(4) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            scale = self.weight.view(1, -1, 1, 1) * (self.variance.view(1, -1, 1, 1) + 1e-5).rsqrt()
            x = x + (self.a(x) * scale + self.shift.view(1, -1, 1, 1))
            return self.norm(self.b(x)) + self.norm(self.c(x))

    model = settle(Frozen())
    places = trace_layers(model, [model.a, model.b, model.c], lambda: model(torch.rand(2, 3, 6, 6)))
    assert places[0].other is not None
    torch.testing.assert_close(places[0].channel_scale, model.weight / (model.variance + 1e-5).sqrt())
    assert [place.norm for place in places] == [None, None, None]


def test_runs_stop_go_on_and_end(model, x):
    with watched([model.first, model.padded]):
        results = []
        with started([lambda: results.append(model(x))], memory=HeldMemory(given=tensors_of(model, x))) as (run,):
            assert run.until(model.first, "before")
            assert run.output is None and run.inputs[0].shape == (2, 4, 8, 8)
            assert run.until(model.first, "after") and run.output.shape == (2, 8, 4, 4)
            model.padded.weight.data.zero_()  # what comes later is computed with what is there then
            assert not run.until(model.first, "before")
            assert len(results) == 1 and not run.until(model.padded, "before")
        with torch.no_grad():
            torch.testing.assert_close(results[0], model(x))


def test_a_run_that_is_left_ends():
    layer = nn.Linear(2, 2)
    ended = []

    def body() -> None:
        try:
            layer(torch.zeros(1, 2))
        finally:
            ended.append(True)

    with watched([layer]):
        run = PausableRun(body, memory=HeldMemory(given=tensors_of(layer)))
        assert run.until(layer, "before") and not ended
        run.cancel()
        assert ended == [True] and not run._thread.is_alive()

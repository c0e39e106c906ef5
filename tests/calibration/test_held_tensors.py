"""What paused passes hold lies on disk beyond a limit, and nothing else changes."""

import errno
import gc
import tempfile

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.bench.memory import first_call_peak
from norton_plugin.calibration import calibrate_, held_tensors
from norton_plugin.calibration.held_tensors import HeldMemory, HeldTensors, tensors_of
from norton_plugin.calibration.lockstep import started, watched
from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.errors import RecipeError, SurgeryError
from tests.calibration.test_calibrate import compressed, images, network

MIB = 2**20


class Aliases(nn.Module):
    """Holds views, a view of a weight, and one tensor for all calls, over layers that a pass stops at."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cached is None:
            self.cached = torch.arange(64.0).sin().view(8, 8) * 1.0
        x = self.first(x) * self.cached
        rows, corner, weight = x.flatten(2), x[:, :, 1:5, 2:6], self.second.weight.view(4, 4, 9)
        y = self.second(x)
        corner.mul_(2)  # seen by x and by rows, which lie on the same storage
        return y + x + rows.view_as(x).flip(3) + weight.sum()


class Unseen(nn.Module):
    """Holds storages together with tensors that a pass does not see, or does not take for its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 1)
        self.scripted = torch.jit.script(_doubled)
        self.cached: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cached is None:
            self.cached = x[0] * 1.0
        seen = self.cached.view(3, 64)
        x = x * 1.0
        other = x.as_subclass(Named)
        doubled = self.scripted(x)
        flat = doubled.flatten(2)
        y = self.layer(x)
        other.mul_(3)
        flat.mul_(2)
        seen.add_(1)
        return y + x + doubled + self.cached


class Named(Tensor):
    """A type of tensors of its own."""


def _doubled(x: Tensor) -> Tensor:
    return x * 2


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """Every tensor goes to disk, in a folder of the test."""
    monkeypatch.setattr(held_tensors, "_LEAST_BYTES", 1)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_pass_goes_on_with_the_same_values(on_disk):
    model = Aliases().eval()
    batches = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    with torch.no_grad():
        expected = [Aliases().eval()(x) for x in batches]
    addresses = [p.data_ptr() for p in model.parameters()]
    memory, results = HeldMemory(0, given=tensors_of(model, batches)), []
    with (
        watched([model.second]),
        started([lambda x=x: results.append(model(x)) for x in batches], memory=memory) as runs,
    ):
        for moment in ("before", "after"):
            assert all(run.until(model.second, moment) for run in runs)
            assert not list(on_disk.iterdir())  # files have no name any more
        # The product, which views share, and the second output, each 2 x 4 x 8 x 8; and one tensor for all passes.
        assert memory.written == 3 * 2 * 4 * 2 * 4 * 64 + 4 * 64
        assert [p.data_ptr() for p in model.parameters()] == addresses
        assert not any(run.until(model.second, "before") for run in runs)
    assert all(map(torch.equal, results, expected))


def test_storages_that_something_else_holds_stay_where_they_are(on_disk):
    model = Unseen().eval()
    batches = [torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    with torch.no_grad():
        alone = Unseen().eval()
        expected = [alone(x).clone() for x in batches]
    results = []
    runs = [lambda x=x: results.append(model(x).as_subclass(Tensor).clone()) for x in batches]
    with watched([model.layer]), started(runs, memory=HeldMemory(0, given=tensors_of(model, batches))) as found:
        for run in found:  # one after the other, as the cache is changed by each
            assert run.until(model.layer, "before") and run.until(model.layer, "after")
            assert not run.until(model.layer, "before")
    assert all(map(torch.equal, results, expected))


def test_calibration_is_the_same_to_the_bit(on_disk, monkeypatch):
    model, found, written = network(), [], []
    write = HeldMemory.write
    monkeypatch.setattr(HeldMemory, "write", lambda self, storage: written.append(storage) or write(self, storage))
    for limit in (10**9, 0):
        own = compressed(model)
        monkeypatch.setattr(held_tensors, "available_bytes", lambda limit=limit: 2 * limit)
        report = calibrate_(model, own, images(96), example_inputs=images(2)[0], positions=64)
        found.append((report.divergence, report.layers, own.state_dict()))
        assert bool(written) is (limit == 0)
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(tensor, found[1][2][name]) for name, tensor in found[0][2].items())


def test_memory_stays_below_the_limit(monkeypatch, tmp_path):
    """Eight passes that hold 16 MiB each, as the operating system counts it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    layer = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.ReLU(), layer).eval()

    def stop_at_all(limit: int) -> None:
        runs = [lambda i=i: model(torch.full((1, 3, 1024, 1024), float(i))) for i in range(8)]
        with watched([layer]), started(runs, memory=HeldMemory(limit, given=tensors_of(model))) as found:
            for _ in range(2):
                assert all(run.until(layer, "before") for run in found)
                for run in found:
                    assert float(run.inputs[0].std()) > 0
                    run.rest()
        gc.collect()

    free, bound = first_call_peak(lambda: stop_at_all(10**12)), first_call_peak(lambda: stop_at_all(32 * MIB))
    if free is None:
        pytest.skip("the system does not count a process's memory")
    assert free > 8 * 16 + 8 * 12
    assert bound < 32 + 8 * 12 + 64  # the limit, the images, and what one pass needs to run


def test_what_is_let_go_of_counts_no_more(on_disk):
    memory = HeldMemory(4000, given=lambda: ())
    held = HeldTensors(memory)
    tensors = [torch.randn(500), torch.randn(500)]
    held.add(tensors)
    held.settle()
    assert memory.written == 0  # 4000 bytes, no more than the limit
    del tensors[0]
    more = torch.randn(400)
    held.add([more])
    held.settle()
    assert memory.written == 0
    values = [tensor.clone() for tensor in (*tensors, more)]
    other = HeldTensors(memory)
    last = torch.randn(200)
    other.add([last])
    other.settle()
    assert memory.written == 800  # the pass that stops when all hold too much gives
    held.settle()
    assert memory.written == 800
    assert all(map(torch.equal, values, (*tensors, more)))


def test_a_disk_that_is_full_undoes_everything(on_disk, monkeypatch):
    def refuse(**settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    model = network()
    own = compressed(model)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr(held_tensors, "available_bytes", lambda: 0)
    with pytest.raises(SurgeryError, match="No space left on device.*TMPDIR") as said:
        calibrate_(model, own, images(), example_inputs=images(2)[0])
    assert str(on_disk) in str(said.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_a_folder_that_is_not_there_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert held_tensors._folder() == str(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert held_tensors._folder() in ("/var/tmp", tempfile.gettempdir())


def test_moments_and_what_is_held_share_a_limit():
    memory, rest = MomentMemory.beside_others(1000, {"a": 300, "b": 30})
    assert (memory.limit, rest) == (500, 500)
    memory, rest = MomentMemory.beside_others(1000, {"a": 600})
    assert (memory.limit, rest) == (800, 200)
    memory.require({"a": 600})
    with pytest.raises(RecipeError, match="calibration.memory is 1000 B, but the moments of a layer need 2.3 KiB"):
        memory.images_at_once(torch.zeros(1, 4), patches=8, targets=0)  # 288 bytes, where 200 are for patches
    assert MomentMemory.beside_others(None, {"a": 600}) == (MomentMemory(None), None)
    with pytest.raises(RecipeError, match="the moments of a need"):
        MomentMemory.beside_others(1000, {"a": 751})


def test_half_of_what_is_available_is_the_usual_limit(monkeypatch):
    monkeypatch.setattr(held_tensors, "available_bytes", lambda: 6000)
    assert HeldMemory(given=lambda: ()).limit == 3000
    monkeypatch.setattr(held_tensors, "available_bytes", lambda: None)
    assert HeldMemory(given=lambda: ()).limit == 4 * 2**30

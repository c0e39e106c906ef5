"""mmengine's own checkpoints load as before; torch's list of safe globals is as before (attacks: tests/security)."""

import pickle
import re
import threading
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as checkpoints

import norton_plugin.mm
from norton_plugin.mm.patches import safe_globals
from norton_plugin.zoo import mmengine_globals as module
from norton_plugin.zoo import read_state_dict
from norton_plugin.zoo.mmengine_globals import mmengine_globals


def history(*values, limit=1000):
    buffer = HistoryBuffer(max_length=limit)
    for count, value in enumerate(values, 1):
        buffer.update(value, count)
    return buffer


def load(path):
    return CheckpointLoader.load_checkpoint(str(path), "cpu", logger="silent")


@pytest.fixture
def saved(tmp_path):
    """A checkpoint as a Runner writes it."""
    scalars = OrderedDict({"train/loss": history(3.0, 1.0, 2.5), "train/time": history(1, 2)})
    hub = {"log_scalars": scalars, "runtime_info": {"iter": 7, "best": np.float64(0.5)}, "resumed_keys": {}}
    hub["resumed_keys"] = {"train/loss": True, "train/time": True, "iter": True, "best": True}
    content = {"meta": {"epoch": 1}, "state_dict": {"weight": torch.ones(2, 3)}, "message_hub": hub}
    torch.save(content, tmp_path / "c.pth")
    return tmp_path / "c.pth"


@pytest.fixture(autouse=True)
def _same_safe_globals():
    before = set(torch.serialization.get_safe_globals())
    yield
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_history_of_mmengine_is_read_with_the_protection_on(saved):
    read = load(saved)["message_hub"]["log_scalars"]["train/loss"]
    assert type(read) is HistoryBuffer
    assert (read.min(), read.current(), read.statistics("mean"), read.max_length) == (1.0, 2.5, 6.5 / 6, 1000)
    read.update(9.0)
    assert read.data[0].tolist() == [3.0, 1.0, 2.5, 9.0] and read.data[1].tolist() == [1, 2, 3, 1]
    assert {type(part) for part in read.data} == {np.ndarray}


def test_the_message_hub_resumes_from_it(saved):
    hub = MessageHub.get_instance("test_safe_globals")
    hub.load_state_dict(load(saved)["message_hub"])
    assert hub.get_scalar("train/time").data[0].tolist() == [1.0, 2.0]
    assert (hub.get_info("iter"), hub.get_info("best")) == (7, 0.5)
    again = hub.state_dict()["log_scalars"]["train/loss"]
    assert again.data[0].tolist() == [3.0, 1.0, 2.5]


def test_what_was_read_can_be_written_and_read_again(saved, tmp_path):
    torch.save(load(saved), tmp_path / "again.pth")
    assert load(tmp_path / "again.pth")["message_hub"]["log_scalars"]["train/loss"].max() == 3.0


def test_other_loads_are_as_strict_as_torch(saved):
    load(saved)
    with pytest.raises(pickle.UnpicklingError, match=re.escape("GLOBAL mmengine.logging.history_buffer")):
        torch.load(saved, weights_only=True)


def test_getattr_reaches_nothing_else(tmp_path):
    class Escape:
        def __reduce__(self):
            return getattr, (HistoryBuffer, "__init__")

    torch.save(Escape(), tmp_path / "c.pth")
    assert callable(torch.load(tmp_path / "c.pth", weights_only=False))
    with pytest.raises(pickle.UnpicklingError, match="attribute '__init__' of something"):
        load(tmp_path / "c.pth")


NUMBERS = [
    np.arange(6, dtype=code).reshape(2, 3)
    for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">f8", ">i4")
]
SHAPES = [np.array([True, False]), np.array(1.5), np.zeros((0, 4)), np.asfortranarray(np.arange(6.0).reshape(2, 3))]


@pytest.mark.parametrize("array", [*NUMBERS, *SHAPES], ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_and_scalars_of_numbers(tmp_path, array):
    content = {"array": array, "scalars": [*array.flatten()], "pair": (array, 1)}
    torch.save(content, tmp_path / "c.pth")
    read = load(tmp_path / "c.pth")
    assert type(read["array"]) is np.ndarray and read["array"].dtype == array.dtype
    assert read["array"].flags.writeable and np.array_equal(read["array"], array)
    assert read["pair"][0] is read["array"]
    assert all(type(a) is type(b) and a == b for a, b in zip(read["scalars"], array.flatten(), strict=True))


def test_bytes_that_are_no_booleans_become_booleans():
    array = module.NumberArray()
    array.__setstate__((1, (3,), module.NumberKind("b1"), False, b"\x00\x02\xff"))
    assert array.value.view(np.uint8).tolist() == [0, 1, 1]


def test_names_of_older_numpy_are_read(tmp_path, saved):
    other = tmp_path / "older.pth"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(other, "w") as new:
        for item in old.namelist():
            new.writestr(item, old.read(item).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in other.read_bytes() and b"numpy._core" not in other.read_bytes()
    assert load(other)["message_hub"]["log_scalars"]["train/loss"].current() == 2.5


def test_what_is_shared_stays_shared_and_cycles_end(tmp_path):
    shared, array = history(1.0), np.arange(3)
    content = {"a": shared, "b": [shared, (shared, array)], "c": array}
    content["self"] = [content]
    tower = ()
    for _ in range(60):  # 2**60 leaves, if each place were looked at by itself
        tower = (tower, tower)
    content["tower"] = tower
    torch.save(content, tmp_path / "c.pth")
    read = load(tmp_path / "c.pth")
    assert read["a"] is read["b"][0] is read["b"][1][0] and read["b"][1][1] is read["c"]
    assert read["self"][0] is read and type(read["a"]) is HistoryBuffer


def test_every_prefix_is_read_alike(saved, monkeypatch, tmp_path):
    schemes = dict(CheckpointLoader._schemes)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where what was downloaded before is looked for
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "c.pth").write_bytes(saved.read_bytes())
    store = type("Store", (), {"get": lambda self, name: saved.read_bytes()})
    monkeypatch.setattr(checkpoints, "get_file_backend", lambda *_, **__: store())
    try:
        CheckpointLoader.register_scheme("mirror://", lambda path, where: load(path.removeprefix("mirror://")))
        for path in (saved, "https://host/c.pth", "s3://bucket/c.pth", "petrel://bucket/c.pth", f"mirror://{saved}"):
            assert load(path)["message_hub"]["log_scalars"]["train/loss"].max() == 3.0, path
    finally:
        CheckpointLoader._schemes = schemes


def test_a_load_within_a_load_leaves_the_outer_one_its_names(saved):
    with mmengine_globals():
        assert load(saved)["message_hub"]["runtime_info"]["best"] == 0.5
        assert isinstance(torch.load(saved)["message_hub"]["log_scalars"]["train/loss"], module.LogHistory)


def test_loads_in_several_threads(saved):
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(saved)["meta"]["epoch"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 8


def test_names_that_the_user_registered_are_put_back(saved):
    theirs = [HistoryBuffer, np.ndarray, np.dtype, (getattr, "builtins.getattr"), np.dtypes.Float64DType]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(theirs)
    try:
        assert type(load(saved)["message_hub"]["log_scalars"]["train/loss"]) is HistoryBuffer
        assert set(torch.serialization.get_safe_globals()) == {*before, *theirs}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_the_list_is_as_before_after_a_failure(tmp_path):
    (tmp_path / "c.pth").write_bytes(b"\x80\x02not a pickle")
    with pytest.raises(pickle.UnpicklingError):
        load(tmp_path / "c.pth")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.pth")


def test_before_torch_2_6_nothing_is_touched(monkeypatch):
    before = torch.serialization.get_safe_globals()
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with mmengine_globals():
        assert torch.serialization.get_safe_globals() == before


def test_a_load_without_the_protection_is_left_alone(saved, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert load(saved)["message_hub"]["log_scalars"]["train/loss"].max() == 3.0


def test_the_method_is_wrapped_once():
    method = CheckpointLoader.load_checkpoint.__func__
    safe_globals.install()
    assert CheckpointLoader.load_checkpoint.__func__ is method
    assert norton_plugin.mm.NortonHook is not None


def test_weights_of_such_a_file_are_read_without_the_logs(saved):
    assert {name: tuple(t.shape) for name, t in read_state_dict(saved).items()} == {"weight": (2, 3)}
    model = torch.nn.Linear(3, 2, bias=False)
    load_checkpoint(model, str(saved))
    assert torch.equal(model.weight, torch.ones(2, 3))

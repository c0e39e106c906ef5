import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import load_checkpoint_, load_source, read_state_dict


class Pickled:
    """Stands for the pickled models people publish."""


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state(model):
    return {name: torch.full_like(value, 2) for name, value in model.state_dict().items()}


WRAPPERS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "args": {"lr": 0.1}},
    "module.": lambda s: {"module." + name: value for name, value in s.items()},
    "both": lambda s: {"state_dict": {"module." + name: value for name, value in s.items()}},
    "TimmClassifier": lambda s: {
        "state_dict": {
            "data_preprocessor.mean": torch.zeros(1),
            **{"model." + name: value for name, value in s.items()},
        }
    },
    "compiled": lambda s: {"_orig_mod." + name: value for name, value in s.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_prefixes_come_off(wrapper, model, state, tmp_path):
    torch.save(WRAPPERS[wrapper](state), tmp_path / "w.pth")
    load_checkpoint_(model, tmp_path / "w.pth")
    assert all(bool((value == 2).all()) for value in model.state_dict().values())


def test_safetensors(model, state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    load_checkpoint_(model, tmp_path / "w.safetensors")
    assert model[0].weight.mean() == 2


def test_names_that_do_not_fit_are_listed_and_nothing_is_loaded(model, state, tmp_path):
    before = model[0].weight.clone()
    state["2.extra"] = torch.ones(1)
    del state["1.bias"]
    state["1.weight"] = torch.ones(7)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError) as caught:
        load_checkpoint_(model, tmp_path / "w.pt")
    for part in ("1 missing: 1.bias", "1 unexpected: 2.extra", "1.weight (7,) for (4,)"):
        assert part in str(caught.value)
    assert torch.equal(model[0].weight, before)


def test_old_files_without_the_batch_counter(model, state, tmp_path):
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pt")
    load_checkpoint_(model, tmp_path / "w.pt")
    assert model[1].weight.mean() == 2


BAD = {
    "absent": (lambda p: None, "not a file"),
    "text": (lambda p: p.write_text("not weights"), "cannot be read"),
    "cut": (lambda p: p.write_bytes(b"PK\x03\x04 cut short"), "cannot be read"),
    "pickled module": (lambda p: torch.save(Pickled(), p), "plain state dict"),
    "no tensors": (lambda p: torch.save({"epoch": 1}, p), "no tensors"),
    "a list": (lambda p: torch.save([torch.ones(1)], p), "holds a list"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind, tmp_path):
    make, message = BAD[kind]
    make(tmp_path / "w.pth")
    with pytest.raises(SourceError, match=message):
        read_state_dict(tmp_path / "w.pth")


def test_damaged_safetensors(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"123")
    with pytest.raises(SourceError, match="cannot be read"):
        read_state_dict(tmp_path / "w.safetensors")


def test_wrong_number_of_classes_is_told(tmp_path):
    torch.save(load_source("cifar:resnet20", num_classes=3).model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(SourceError, match=r"linear.weight \(3, 64\) for \(10, 64\)"):
        load_source("cifar:resnet20", checkpoint=tmp_path / "w.pth")

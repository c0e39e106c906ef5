"""Structures of blocks of every level: old ones still load, and damaged ones change nothing."""

import copy
import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from norton_plugin.artifact import MANIFEST, WEIGHTS, load, load_weights_, save
from norton_plugin.blocks import CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery import apply_structure_
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import diff


class Net(nn.Module):
    """What becomes a block of three clusters, one of one cluster, one in groups, a spatial SVD, and a CPDLinear."""

    def __init__(self) -> None:
        super().__init__()
        self.clustered = nn.Conv2d(3, 9, 3, padding=1)
        self.whole = nn.Conv2d(9, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.spatial = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spatial(self.grouped(self.whole(torch.relu(self.clustered(x))))).mean((2, 3)))


def small() -> nn.Module:
    torch.manual_seed(3)
    model = Net()
    model.clustered = CPDBlock(3, 9, 3, 2, clusters=3, cluster_size=4, padding=1)
    model.clustered.slot = torch.tensor([0, 4, 8, 1, 5, 9, 2, 3, 10])
    model.whole = CPDBlock(9, 8, 1, 4, clusters=1)
    model.grouped = CPDBlock(8, 8, 3, 2, clusters=4, groups=2)
    model.spatial = SpatialSVDBlock(8, 8, 3, 5, padding=1, groups=2)
    model.head = CPDLinear(8, 6, 3)
    return model.eval()


@pytest.fixture
def structure() -> dict:
    return json.loads(json.dumps(diff(geometry(Net()), geometry(small()))))


def entry(structure: dict, name: str) -> dict:
    [found] = [entry for entry in structure["modules"] if entry["names"] == [name]]
    return found.get("block") or found.get("spatial") or found["linear"]


def test_what_a_structure_says(structure):
    assert [next(kind for kind in ("block", "spatial", "linear") if kind in e) for e in structure["modules"]] == [
        "block", "block", "block", "spatial", "linear",
    ]  # fmt: skip
    assert entry(structure, "spatial") == {
        "in_channels": 8, "out_channels": 8, "kernel_size": [3, 3], "rank": 5, "stride": [1, 1], "padding": [1, 1],
        "dilation": [1, 1], "groups": 2, "bias": True, "padding_mode": "zeros", "form": "auto",
        "training_form": "dense",
    }  # fmt: skip
    clustered = entry(structure, "clustered")
    assert (clustered["clusters"], clustered["cluster_size"], clustered["rank"]) == (3, 4, 2)
    assert entry(structure, "head") == {"in_features": 8, "out_features": 6, "components": 3, "bias": True}


def test_a_saved_model_comes_back_bit_for_bit(structure, tmp_path):
    model, x = small(), torch.randn(2, 3, 6, 6)
    loaded = load(save(tmp_path / "a", model, structure), Net().eval())
    assert torch.equal(loaded(x), model(x)) and repr(loaded) == repr(model)
    assert loaded.clustered.cluster.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 2]


def test_an_artefact_of_before_blocks_had_clusters_still_loads(tmp_path):
    """Literally what was written then: neither clusters nor places, and three factors."""
    dense, x = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1)).eval(), torch.randn(2, 4, 6, 6)
    block = CPDBlock(4, 5, 3, 2, stride=2, padding=1)
    structure = diff(geometry(dense), geometry(nn.Sequential(block)))
    arguments = {
        "in_channels": 4, "out_channels": 5, "kernel_size": [3, 3], "rank": 2, "stride": [2, 2], "padding": [1, 1],
        "dilation": [1, 1], "groups": 1, "bias": True, "padding_mode": "zeros", "form": "auto",
        "training_form": "dense",
    }  # fmt: skip
    assert structure["modules"] == [{"names": ["0"], "block": arguments}]
    directory = save(tmp_path / "a", nn.Sequential(block).eval(), structure)
    assert {k: tuple(v.shape) for k, v in load_file(directory / WEIGHTS).items()} == {
        "0.head": (5, 2, 4), "0.vertical": (5, 2, 3), "0.horizontal": (5, 2, 3), "0.bias": (5,),
    }  # fmt: skip
    loaded = load(directory, dense)
    expected = torch.einsum("nrc,nrh,nrw->nchw", block.head, block.vertical, block.horizontal)
    torch.testing.assert_close(loaded(x), nn.functional.conv2d(x, expected, block.bias, 2, 1))
    assert loaded[0].mix is None and loaded[0].slot is None and loaded[0].clusters == 5


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("grouped", {"clusters": 3}, "clusters and cluster_size of the block 'grouped' is .*a multiple of 2 groups"),
        ("clustered", {"clusters": 10}, r"is \\[10, 4\\], expected a multiple of 1 groups, and places for 9 filters"),
        ("clustered", {"cluster_size": 2}, r"is \\[3, 2\\], expected .* places for 9 filters"),
        ("clustered", {"cluster_size": 10}, r"is \\[3, 10\\]"),
        ("clustered", {"clusters": 0}, "clusters of 'block' of 'clustered' is 0, expected a positive integer"),
        ("clustered", {"clusters": True}, "clusters of .* is True"),
        ("clustered", {"cluster_size": 4.0}, "cluster_size of .* is 4.0"),
        ("clustered", {"clusters": 2**40}, "clusters of .* is 1099511627776"),
        ("clustered", {"rank": 28}, "rank of the block clustered is 28, expected at most 27"),
        ("whole", {"rank": 9}, "rank of the block whole is 9, expected at most 8"),
        ("grouped", {"rank": 28}, "rank of the block grouped is 28, expected at most 27"),
        ("spatial", {"rank": 13}, "rank of the block spatial is 13, expected at most 12"),
        ("spatial", {"rank": True}, "rank of 'spatial' of 'spatial' is True"),
        ("spatial", {"form": "depthwise"}, r"form of 'spatial' of 'spatial' is 'depthwise', expected one of"),
        ("spatial", {"training_form": "grouped"}, "training_form of 'spatial'"),
        ("spatial", {"groups": 3}, "groups of the block 'spatial' is 3, expected a divisor of 8 and 8 channels"),
        ("spatial", {"groups": 4}, "groups of the block spatial is 4, expected at most 2"),
        ("spatial", {"in_channels": 16}, "in_channels of the block spatial is 16, expected at most 8"),
        ("spatial", {"stride": [2, 1]}, r"stride of the block spatial is \\(2, 1\\), expected \\(1, 1\\)"),
        ("spatial", {"padding": [0, 1]}, r"padding of the block spatial is \\(0, 1\\)"),
        ("spatial", {"kernel_size": [5, 5]}, "kernel_size of the block spatial"),
        ("spatial", {"clusters": 2}, "'spatial' of 'spatial' is .*'clusters'"),
        ("head", {"components": 7}, "components of the layer head is 7, expected at most 6"),
        ("head", {"components": 0}, "components of 'linear' of 'head' is 0"),
        ("head", {"in_features": 9}, "in_features of the layer head is 9, expected at most 8"),
        ("head", {"bias": False}, "bias of the layer head is False, expected as of its Linear layer"),
        ("head", {"command": "rm"}, "'linear' of 'head' is .*'command'"),
    ],
)
def test_damaged_arguments_change_nothing(structure, name, change, message):
    entry(structure, name).update(change)
    model = Net().eval()
    text, state = repr(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ArtifactError, match=message.replace("\\\\", "\\")):
        apply_structure_(model, structure)
    assert repr(model) == text and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "missing"), [("clustered", "cluster_size"), ("spatial", "rank"), ("head", "components")]
)
def test_missing_arguments_are_named(structure, name, missing):
    del entry(structure, name)[missing]
    with pytest.raises(ArtifactError, match=f"expected the arguments .*{missing}"):
        apply_structure_(Net(), structure)


def test_a_layer_of_another_kind_cannot_become_a_block(structure):
    for old, new in (("head", "whole"), ("whole", "head"), ("spatial", "head")):
        swapped = copy.deepcopy(structure)
        found = next(e for e in swapped["modules"] if e["names"] == [old])
        found["names"] = [new]
        swapped["modules"] = [found]
        with pytest.raises(ArtifactError, match="which a (CPDBlock|SpatialSVDBlock|CPDLinear) replaces"):
            apply_structure_(Net(), swapped)


@pytest.mark.parametrize("name", ["spatial", "grouped"])
def test_a_block_of_one_kind_does_not_become_one_of_the_other(structure, name):
    """A structure applied to a model that is compressed already: only blocks of its own kind may change."""
    other = {"spatial": CPDBlock(8, 8, 3, 2, padding=1, groups=2), "grouped": SpatialSVDBlock(8, 8, 3, 2, groups=2)}
    model = Net()
    setattr(model, name, other[name])
    structure["source"] = diff(geometry(model), geometry(model))["source"]
    structure["modules"] = [e for e in structure["modules"] if e["names"] == [name]]
    with pytest.raises(ArtifactError, match="a 2-D convolution, which a (CPDBlock|SpatialSVDBlock) replaces"):
        apply_structure_(model, structure)


def test_no_memory_beyond_twice_the_weight_can_be_asked_for():
    """256 clusters of rank 2304 would take 600 MB in the place of a convolution of 2 MB."""
    dense = nn.Sequential(nn.Conv2d(256, 256, 3, bias=False))
    model = nn.Sequential(CPDBlock(256, 256, 3, 2, clusters=256, bias=False))
    structure = diff(geometry(dense), geometry(model))
    structure["modules"][0]["block"]["rank"] = 2304
    with pytest.raises(ArtifactError, match="rank of the block 0 is 2304, expected at most 18"):
        apply_structure_(dense, structure)


@pytest.mark.parametrize(
    "slot",
    [
        [0, 4, 8, 1, 5, 9, 2, 3, 12],
        [0, 4, 8, 1, 5, 9, 2, 3, -1],
        [0, 4, 8, 1, 5, 9, 2, 3, 3],
        [0, 4, 8, 1, 5, 9, 2, 3],
    ],
)
@pytest.mark.parametrize("where", ["clustered", "grouped"])
def test_damaged_places_are_refused_and_the_model_stays(structure, tmp_path, slot, where):
    directory = save(tmp_path / "a", small(), structure)
    slot = slot if where == "clustered" else [4, 1, 2, 3, 0, 5, 6, 7]  # of the other group
    tensors = load_file(directory / WEIGHTS)
    tensors[f"{where}.slot"] = torch.tensor(slot)
    save_file(tensors, directory / WEIGHTS)
    data = json.loads((directory / MANIFEST).read_text())
    del data["manifest_hash"]
    data["weights_hash"] = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    (directory / MANIFEST).write_text(json.dumps(data))
    model = Net().eval()
    text = repr(model)
    with pytest.raises(ArtifactError, match=f"{where}.slot "):
        load(directory, model)
    assert repr(model) == text
    rebuilt = small()
    before = {name: tensor.clone() for name, tensor in rebuilt.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in before.items() if tensor.is_floating_point()}
    with pytest.raises(ArtifactError, match=f"{where}.slot "):
        load_weights_(rebuilt, {**before, **changed, f"{where}.slot": torch.tensor(slot)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in rebuilt.state_dict().items())

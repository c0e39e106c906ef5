"""What a structure, the header of the weights and the tensors may ask for, whoever wrote them."""

import copy
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from artefacts import Net, compressed, entry_of, in_child, loaded_value, rewrite, save_value

from norton_plugin.artifact import WEIGHTS, load, load_weights_
from norton_plugin.artifact.weights import _sha256
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import apply_structure_

MEGABYTE = 2**20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return save_value(tmp_path / "small", 0)


def _state(model: nn.Module) -> tuple[str, dict[str, Tensor], list[dict[str, Any]]]:
    plain = [
        {k: v for k, v in vars(m).items() if isinstance(v, bool | int | str | list | tuple)} for m in model.modules()
    ]
    return repr(model), dict(model.state_dict(keep_vars=True)), copy.deepcopy(plain)


def _refused_by_structure(change: Callable[[dict[str, Any]], Any], message: str | None = None) -> None:
    """Applied to a model as well, where no weights are at hand: a checkpoint brings a structure alone."""
    _, structure = compressed()
    change({"structure": structure})
    model = Net().eval()
    text, tensors, plain = _state(model)
    with pytest.raises(ArtifactError, match=message) as caught:
        apply_structure_(model, structure)
    assert len(str(caught.value)) < 1000
    after = _state(model)
    assert after[0] == text and after[2] == plain
    assert all(after[1][name] is tensor for name, tensor in tensors.items()) and after[1].keys() == tensors.keys()


def _attribute(module: str, name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: entry_of(data, module)["attributes"].update({name: value})


ATTRIBUTES = [
    ("body", "forward", 1),
    ("body", "__class__", 1),
    ("body", "__dict__", 1),
    ("body", "_parameters", 1),
    ("body", "_modules", [1]),
    ("body", "_forward_hooks", {"tuple": [1]}),
    ("body", "_version", 1),
    ("body", "training", 0),
    ("body", "training", False),
    ("body", "training", True),
    ("body", "weight", 1),
    ("body", "in_channels", 1),
    ("body", "", 1),
    ("norm", "eps", 0.5),
    ("norm", "eps", 1),
    ("norm", "affine", 0),
    ("norm", "momentum", None),
    ("body", "in_features", "6"),
    ("body", "in_features", 6.0),
    ("body", "in_features", True),
    ("body", "in_features", None),
    ("body", "in_features", [6]),
    ("body", "in_features", {"tuple": [6]}),
    ("body", "in_features", {"list": [6]}),
    ("body", "in_features", {"tuple": 6}),
    ("body", "in_features", 0),
    ("body", "in_features", -6),
    ("body", "in_features", 2**31),
    ("body", "in_features", 10**400),
    ("", "splits", 3),
    ("", "splits", {"tuple": [3, 3]}),
    ("", "splits", [3]),
    ("", "splits", [3, 3, 3]),
    ("", "splits", [3, "3"]),
    ("", "splits", [3, True]),
    ("", "splits", [3, [3]]),
    ("", "splits", [3, -3]),
    ("", "splits", [3, 2**40]),
]


@pytest.mark.parametrize(("module", "name", "value"), ATTRIBUTES, ids=lambda value: repr(value)[:20])
def test_attributes(target: Path, module: str, name: str, value: Any) -> None:
    _refused_by_structure(_attribute(module, name, value))
    if value != 10**400:  # no JSON of ours holds it
        rewrite(target, _attribute(module, name, value))
        with pytest.raises(ArtifactError):
            load(target, Net().eval())


def test_the_attributes_that_surgery_writes_are_set() -> None:
    _, structure = compressed()
    model = Net().eval()
    apply_structure_(model, json.loads(json.dumps(structure)))
    assert (model.body.in_features, model.body.out_features, model.splits) == (6, 6, [3, 3])
    model.splits.append(9)  # the model's own list, not the structure's
    assert entry_of({"structure": structure}, "")["attributes"]["splits"] == [3, 3]


def _block(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: entry_of(data, "stem")["block"].update({name: value})


BLOCKS = [
    (name, value)
    for name in ("in_channels", "out_channels", "rank", "groups")
    for value in (0, -1, 2**31, 10**18, 1.0, True, "6", None, [6], 100)
] + [
    *[
        (name, v)
        for name in ("kernel_size", "stride", "dilation")
        for v in (3, [3], [3, 0], [3, 3, 3], ["3", 3], [9, 9])
    ],
    *[("padding", value) for value in (1, [1], [-1, 1], [10**6, 10**6], "full", None, [1.0, 1.0], {"tuple": [1, 1]})],
    *[("padding_mode", value) for value in ("ones", None, 1, "reflect", ["zeros"])],
    *[(name, value) for name in ("form", "training_form") for value in ("other", None, 1, ["dense"], "__init__")],
    *[("bias", value) for value in (0, 1, None, "yes", False)],
    *[(name, "cuda") for name in ("device", "dtype", "self", "command")],
]


@pytest.mark.parametrize(("name", "value"), BLOCKS, ids=lambda value: repr(value)[:20])
def test_arguments_of_blocks(name: str, value: Any) -> None:
    _refused_by_structure(_block(name, value))


SHAPES = [[10**9, 10**9], [2**31, 1], [-1, 6], [6.0, 6], [True, 6], ["6", 6], "66", None, 6, [6], [6, 6, 1], [6] * 20]
SHAPES += [[0, 6], [9, 6], {"tuple": [6, 6]}]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_shapes(target: Path, shape: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        entry_of(data, "body")["resize"]["weight"] = shape

    _refused_by_structure(change)
    rewrite(target, change)
    with pytest.raises(ArtifactError):
        load(target, Net().eval())


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["structure"].update(modules=None),
        lambda d: d["structure"].update(modules={"a": 1}),
        lambda d: d["structure"].update(modules=[None]),
        lambda d: d["structure"].update(modules=[[]]),
        lambda d: d["structure"].update(source=None),
        lambda d: d["structure"].update(source=[]),
        lambda d: d["structure"]["source"].update({"stem.stride": {"tuple": 3}}),
        lambda d: d["structure"]["source"].update({"stem.stride": {"other": 3}}),
        lambda d: d["structure"].update(version=True),
        lambda d: d["structure"].update(version=2),
        lambda d: d["structure"].pop("version"),
        lambda d: d["structure"]["modules"].append(d["structure"]["modules"][0]),
        lambda d: d["structure"]["modules"].extend([{"names": ["stem"], "resize": {}, "attributes": {}}]),
        lambda d: entry_of(d, "stem").update(names=[]),
        lambda d: entry_of(d, "stem").update(names="stem"),
        lambda d: entry_of(d, "stem").update(names=[1]),
        lambda d: entry_of(d, "stem").update(names=["stem", "stem.weight"]),
        lambda d: entry_of(d, "stem").update(names=["stem", "body"]),
        lambda d: entry_of(d, "stem").update(names=["body"]),
        lambda d: entry_of(d, "stem").update(names=[""]),
        lambda d: entry_of(d, "stem").update(block=None),
        lambda d: entry_of(d, "stem").update(block=[]),
        lambda d: entry_of(d, "stem").update(block={}),
        lambda d: entry_of(d, "stem")["block"].pop("form"),
        lambda d: entry_of(d, "stem").update(resize={}, attributes={}),
        lambda d: entry_of(d, "body").update(names=["__class__"]),
        lambda d: entry_of(d, "body").update(names=["forward"]),
        lambda d: entry_of(d, "body").update(resize=None),
        lambda d: entry_of(d, "body").update(resize=[["weight", [6, 6]]]),
        lambda d: entry_of(d, "body").update(attributes=None),
        lambda d: entry_of(d, "body")["resize"].update(absent=[1]),
        lambda d: entry_of(d, "body")["resize"].update({"weight.data": [1]}),
        lambda d: entry_of(d, "body").update(code="1"),
    ],
)  # fmt: skip
def test_entries(target: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    _refused_by_structure(change)
    rewrite(target, change)
    with pytest.raises(ArtifactError):
        load(target, Net().eval())


def test_a_structure_that_is_no_json() -> None:
    """As a checkpoint may hold one, which is no JSON file."""
    _refused_by_structure(lambda d: d["structure"]["modules"].append({1, 2}))
    _refused_by_structure(lambda d: entry_of(d, "body")["resize"].update(weight=[10**5000, 6]))
    _refused_by_structure(lambda d: entry_of(d, "body")["attributes"].update({1: 1}))
    _refused_by_structure(lambda d: entry_of(d, "body")["resize"].update(weight=[torch.tensor(6), 6]))


def _header(directory: Path, header: dict[str, Any], size: int) -> None:
    """Weights with this header, before as many bytes that take no place on the disk."""
    text = json.dumps(header).encode()
    with (directory / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)


def _plain_header(directory: Path) -> tuple[dict[str, Any], int]:
    data = (directory / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), len(data) - 8 - length


def _sign_weights(directory: Path) -> None:
    with (directory / WEIGHTS).open("rb") as file:
        found = _sha256(file)
    rewrite(directory, lambda data: data.update(weights_hash=found))


@pytest.mark.parametrize(
    "shape", [[10**9, 10**9], [2**40, 6], [2**63, 2**63], [-6, -6], [6, 7], [36], [6, 6, 1], "6", None]
)
def test_headers_that_contradict_themselves_or_the_structure(target: Path, shape: Any) -> None:
    header, size = _plain_header(target)
    header["body.weight"]["shape"] = shape
    _header(target, header, size)

    def attempt() -> None:
        for _ in range(2):
            with pytest.raises(ArtifactError):
                load(target, Net().eval())
            if isinstance(shape, list):  # then a structure that agrees with it
                rewrite(target, lambda data: entry_of(data, "body")["resize"].update(weight=shape))

    assert in_child(attempt, memory=200 * MEGABYTE) == 0


def test_a_huge_tensor_that_header_structure_and_file_agree_on(target: Path) -> None:
    """The file has 3.6 GB, all holes, and is mapped twice; making such a tensor takes as much once more."""
    header, size = _plain_header(target)
    side = 30_000
    header["body.weight"] = {"dtype": "F32", "shape": [side, side], "data_offsets": [0, 4 * side * side]}
    start = header["body.weight"]["data_offsets"][1]
    for name, entry in header.items():
        if name not in ("body.weight", "__metadata__"):
            length = entry["data_offsets"][1] - entry["data_offsets"][0]
            entry["data_offsets"] = [start, start + length]
            start += length
    _header(target, header, start)
    rewrite(target, lambda data: entry_of(data, "body")["resize"].update(weight=[side, side]))

    def attempt() -> None:
        with pytest.raises(ArtifactError, match=r"body.weight is \(30000, 30000\), expected part of \(8, 8\)"):
            load(target, Net().eval())

    assert in_child(attempt, memory=2 * 4 * side * side + 500 * MEGABYTE) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("stem.head"),
        lambda tensors: tensors.pop("head.bias"),
        lambda tensors: tensors.update({"stem.weight": torch.zeros(8, 3, 3, 3)}),
        lambda tensors: tensors.update({"other": torch.zeros(3)}),
        lambda tensors: tensors.update({"table": torch.zeros(64, 64)}),
        lambda tensors: tensors.update({"stem.vertical": torch.zeros(6, 2, 3)}),
        lambda tensors: tensors.clear(),
    ],
)
def test_tensors_that_are_not_those_of_the_model(target: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(target / WEIGHTS)
    change(tensors)
    save_file(tensors, target / WEIGHTS)
    _sign_weights(target)
    with pytest.raises(ArtifactError):
        load(target, Net().eval())


ODD = [
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", ODD, ids=str)
@pytest.mark.parametrize("name", ["stem.head", "norm.running_var", "table"])
def test_numbers_of_another_kind(target: Path, name: str, dtype: torch.dtype) -> None:
    tensors = load_file(target / WEIGHTS)
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, target / WEIGHTS)
    _sign_weights(target)
    with pytest.raises(ArtifactError, match=f"{name} is {dtype} in the weights, torch.float32 in the model"):
        load(target, Net().eval())


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float32, torch.float16])
def test_counters_stay_integers_of_their_kind(target: Path, dtype: torch.dtype) -> None:
    tensors = load_file(target / WEIGHTS)
    tensors["norm.num_batches_tracked"] = tensors["norm.num_batches_tracked"].to(dtype)
    save_file(tensors, target / WEIGHTS)
    _sign_weights(target)
    with pytest.raises(ArtifactError, match=f"num_batches_tracked is {dtype} in the weights, torch.int64 in the model"):
        load(target, Net().eval())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_of_any_usual_kind_is_taken_over(target: Path, dtype: torch.dtype) -> None:
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(target / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS)
    _sign_weights(target)
    assert loaded_value(target) == 0
    assert {p.dtype for p in load(target, Net().eval()).parameters()} == {dtype}


def test_complex_and_unusual_tensors_of_the_model_itself_are_kept() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = nn.Parameter(torch.ones(2))
            self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
            self.register_buffer("turns", torch.ones(2, dtype=torch.complex64) * 1j, persistent=False)

    stored = {"plain": torch.full((2,), 3.0, dtype=torch.float64), "wave": torch.full((2,), 2j, dtype=torch.complex64)}
    model = Odd()
    load_weights_(model, stored)
    assert torch.equal(model.wave, stored["wave"]) and torch.equal(model.plain, stored["plain"])
    assert model.turns.tolist() == [1j, 1j]

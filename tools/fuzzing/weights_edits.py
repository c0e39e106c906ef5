"""Files of weights that are sound as files and hold something else than the model's weights."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

_DTYPES = (
    torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float16,
    torch.float64, torch.bfloat16,
)  # fmt: skip
# What a float of the model may become: rounding it is the sender's choice, making it something else is not.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class EditedWeights:
    """A file of weights after an edit.

    Attributes:
        content: Of the file.
        label: What was done, for people.
        fits: Whether a model may take it: every name and shape is there, and what was a float is one.
    """

    content: bytes
    label: str
    fits: bool


def edited_weights(rng: random.Random, path: Path) -> EditedWeights:
    """Edit a file of weights; the manifest's hash is to be made to fit.

    Args:
        rng: Decides.
        path: The sound file; not changed.
    """
    sound = load_file(path)
    tensors = dict(sound)
    name = rng.choice(list(tensors))
    kind = rng.choice(
        ("dtype", "dtype", "all dtypes", "missing", "more", "shape", "empty", "rename", "header", "nothing")
    )
    if kind == "header":
        return _odd_header(rng, path.read_bytes())
    if kind == "nothing":
        return EditedWeights(save({}), "no tensors", False)
    dtype = rng.choice(_DTYPES)
    if kind == "dtype":
        tensors[name] = tensors[name].to(dtype)
    elif kind == "all dtypes":
        tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    elif kind == "missing":
        del tensors[name]
    elif kind == "more":
        tensors[rng.choice((f"{name}.x", "", "__class__", "a\0b"))] = torch.zeros(2)
    elif kind == "shape":
        tensors[name] = rng.choice((tensors[name].reshape(-1), tensors[name][None].contiguous(), torch.zeros(())))
    elif kind == "empty":
        tensors[name] = torch.zeros(0)
    else:
        tensors[f"x{name}"] = tensors.pop(name)
    return EditedWeights(save(_apart(tensors)), f"{kind} {name} {dtype}", _fits(tensors, sound))


def _fits(tensors: dict[str, Tensor], sound: dict[str, Tensor]) -> bool:
    return tensors.keys() == sound.keys() and all(
        tensors[key].shape == own.shape and (tensors[key].dtype in FLOATS or not own.is_floating_point())
        for key, own in sound.items()
    )


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, as the format asks for."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _odd_header(rng: random.Random, content: bytes) -> EditedWeights:
    """Return a header that promises what the file does not hold; some of its changes do no harm."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(("length", "shape", "offsets", "dtype", "metadata", "twice"))
    if kind == "length":
        length = rng.choice((0, 1, 2**40, 2**64 - 1)).to_bytes(8, "little")
        return EditedWeights(length + content[8:], "a header of another length", False)
    if kind == "shape":
        header[name]["shape"] = rng.choice(([2**40], [2**32, 2**32], [-1], [], [0]))
    elif kind == "offsets":
        header[name]["data_offsets"] = rng.choice(([0, 2**40], [2**63, 2**64], [8, 0], [0, 0], []))
    elif kind == "dtype":
        header[name]["dtype"] = rng.choice(("F64", "I64", "BOOL", "F128", "", "F8_E4M3"))
    elif kind == "metadata":
        header["__metadata__"] = rng.choice(({"a": "b"}, {"format": "pt"}, 5, {"a": 5}))
    text = json.dumps(header)
    if kind == "twice":
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}"
    return EditedWeights(len(text).to_bytes(8, "little") + text.encode() + data, f"header: {kind} of {name}", True)

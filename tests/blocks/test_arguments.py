"""What CPDBlock's constructor refuses, and that it allocates nothing then; what it takes."""

import numpy as np
import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock, arguments
from norton_plugin.blocks.arguments import MAX_NUMBERS, MAX_PIXELS
from norton_plugin.errors import NortonError, SurgeryError

SOUND = dict(in_channels=4, out_channels=8, kernel_size=3, rank=1)
HUGE = 10**12

WRONG = [
    *(({name: value}, f"{name} .* is not a whole number from 1")
      for name in ("in_channels", "out_channels", "rank", "groups")
      for value in (0, -1, HUGE, 10**400, 1.0, True, "4", None, [4], torch.tensor(4), float("nan"))),
    *(({name: value}, f"{name} .* is not one or two positive whole numbers of pixels")
      for name in ("kernel_size", "stride", "dilation")
      for value in (0, -3, (3, 0), (3, 3, 3), (3,), (), 3.0, (3, 3.5), True, (True, 3), "33", b"33", None, {3, 4},
                    MAX_PIXELS + 1, (3, HUGE), [[3, 3], 3], np.array([3, 3]), float("inf"))),
    *((dict(padding=value), "padding .* is not one or two non-negative whole numbers")
      for value in (-1, (1, -1), 1.5, True, (1, 2, 3), None, HUGE, {"1": 1}, (), np.array([1, 1]))),
    (dict(padding="full"), "padding 'full' is unknown; expected one of .*dynamic_same"),
    (dict(padding="SAME"), "padding 'SAME' is unknown"),
    (dict(padding="x" * 10_000), r"padding 'x+\.\.\.x+' is unknown"),
    (dict(padding="same", stride=2), "padding 'same' needs stride 1, got \\(2, 2\\)"),
    (dict(padding="same", stride=(1, 2)), "padding 'same' needs stride 1"),
    (dict(padding_mode="mirror"), "padding mode 'mirror' is unknown"),
    (dict(padding_mode=None), "padding mode None is unknown"),
    (dict(padding_mode=["zeros"]), "padding mode .* is unknown"),
    (dict(groups=3), "groups 3 must divide in_channels 4 and out_channels 8"),
    (dict(groups=8), "groups 8 must divide in_channels 4"),
    (dict(in_channels=16, groups=16), "groups 16 must divide .* out_channels 8"),
    *(({name: value}, f"{name} .* is unknown; expected one of .*separable")
      for name in ("form", "training_form")
      for value in ("fast", "", None, 0, ["dense"], np.array(["dense", "dense"]))),
    *((dict(bias=value), "bias .* is neither True nor False") for value in (1, 0, None, "no", torch.zeros(8))),
    *((dict(dtype=value), "dtype .* is not one of torch.float16")
      for value in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32", float, np.array([1, 2]))),
    *((dict(device=value), "device .* cannot be used")
      for value in ("gpu", "cuda:99", "nothing:0", -7, 1.5, object())),
    (dict(rank=MAX_NUMBERS), "takes .* numbers; at most"),
    (dict(in_channels=2**20, out_channels=2**20), "a block of 1048576 filters of shape \\(1048576, 3, 3\\)"),
    (dict(in_channels=2**27, out_channels=2**27, groups=2**27), "takes .* numbers"),
    (dict(kernel_size=MAX_PIXELS, in_channels=64), "takes .* numbers"),
    (dict(rank=2**20, in_channels=2**10, out_channels=2**10), "and rank 1048576 takes"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_arguments_are_named_before_anything_is_allocated(monkeypatch, wrong, message):
    sizes = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: sizes.append(size) or empty(*size, **options))
    with pytest.raises(SurgeryError, match=message) as caught:
        CPDBlock(**(SOUND | wrong))
    assert isinstance(caught.value, NortonError) and len(str(caught.value)) < 500
    assert sizes in ([], [(0,)])


def test_there_are_more_than_thirty_of_them():
    assert len(WRONG) > 130


@pytest.mark.parametrize(
    "right",
    [
        dict(in_channels=np.int64(4), rank=np.int32(1)),
        dict(kernel_size=[3, 5], stride=torch.Size((2, 1)), dilation=(np.int64(1), 2), padding=[0, 2]),
        dict(kernel_size=MAX_PIXELS, padding=MAX_PIXELS, stride=MAX_PIXELS, in_channels=1, out_channels=1),
        dict(rank=9), dict(rank=20), dict(groups=4), dict(padding=0), dict(padding="same", dilation=2),
        dict(padding="dynamic_same", stride=2), dict(padding="valid", stride=3),
        dict(padding_mode="circular", padding=1), dict(form="grouped", training_form="depthwise", bias=False),
        dict(device="cpu", dtype=torch.bfloat16), dict(device=torch.device("meta")), dict(dtype=torch.float64),
        dict(in_channels=2048, out_channels=2048, rank=9, device="meta"),
        dict(in_channels=512, out_channels=4096, kernel_size=7, rank=49, device="meta"),
    ],
    ids=str,
)  # fmt: skip
def test_right_arguments_are_taken(right):
    arguments = SOUND | right
    block = CPDBlock(**arguments)
    sizes = (block.in_channels, block.out_channels, block.rank, block.groups, *block.kernel_size, *block.stride)
    assert {type(size) for size in sizes} == {int}
    channels = arguments["in_channels"] // arguments.get("groups", 1)
    assert block.head.shape == (arguments["out_channels"], arguments["rank"], channels)
    assert block.head.dtype == arguments.get("dtype", torch.float32)
    assert block.head.device == torch.device(arguments.get("device", "cpu"))
    assert (block.bias is None) == (arguments.get("bias") is False)


def test_parameters_come_in_the_order_they_always_had():
    block = CPDBlock(4, 8, 3, 2)
    assert [name for name, _ in block.named_parameters()] == ["head", "vertical", "horizontal", "bias"]
    assert all(isinstance(p, nn.Parameter) for p in block.parameters())


def test_a_form_is_checked_whenever_it_is_set():
    block = CPDBlock(4, 8, 3, 1)
    with pytest.raises(SurgeryError, match="form 'fast' is unknown"):
        block.form = "fast"
    assert block.form == "auto" and arguments.MAX_PIXELS == 4096

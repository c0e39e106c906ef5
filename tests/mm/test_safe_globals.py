import pickle

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from mmengine.logging import HistoryBuffer

import norton_plugin.mm  # noqa: F401


class Escape:
    """Asks, through getattr, for something that mmengine does not store."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_a_history_of_mmengine_is_read_with_the_protection_on(tmp_path):
    history = HistoryBuffer()
    history.update(3.0)
    history.update(1.0)
    torch.save({"message_hub": history}, tmp_path / "c.pth")
    read = torch.load(tmp_path / "c.pth", weights_only=True)["message_hub"]
    assert (read.min(), read.current(), read.statistics("mean")) == (1.0, 1.0, 2.0)


def test_getattr_reaches_nothing_else(tmp_path):
    torch.save(Escape(), tmp_path / "c.pth")
    assert callable(torch.load(tmp_path / "c.pth", weights_only=False))
    with pytest.raises((pickle.UnpicklingError, AttributeError), match="does not store"):
        torch.load(tmp_path / "c.pth", weights_only=True)

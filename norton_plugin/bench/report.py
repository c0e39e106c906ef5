"""What a benchmark found, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from norton_plugin.bench.layers import LayerSpeed

# Half of the calls of one model that lie further apart than this share of their median tell little.
_STEADY = 0.5


@dataclass(frozen=True)
class Timing:
    """One model in one runtime.

    Attributes:
        model: ``"dense"``, ``"dense, folded"``, ``"compressed"`` (its blocks as they are), ``"delivered"`` (lowered
            and folded) or ``"delivered, int8"``.
        runtime: ``"PyTorch"`` or ``"torch.compile"``, each also with ``", channels_last"``, ``"onnxruntime"`` or
            ``"OpenVINO"``.
        milliseconds: Median of one call.
        low: First quartile, in milliseconds.
        high: Third quartile, in milliseconds.
        speed_up: Over the dense model, the faster of its two where it was also folded, in the same runtime; above 1 is
            faster.
        speed_up_in_all: Over the dense model in PyTorch as it was loaded.
        efficiency: ``speed_up`` over the ratio of MACs (dense by compressed) of what runs: 1 where every MAC saved is
            time saved. None for the dense model.
        peak_mib: Memory that one call needs at its peak beyond what was there before, in MiB; None where the system
            does not tell.
    """

    model: str
    runtime: str
    milliseconds: float
    low: float
    high: float
    speed_up: float
    speed_up_in_all: float
    efficiency: float | None
    peak_mib: float | None

    @property
    def steady(self) -> bool:
        """Whether the quartiles lie within half of the median of each other."""
        return self.high - self.low <= _STEADY * self.milliseconds


@dataclass(frozen=True)
class Setting:
    """All models, timed in turn at one batch size and number of threads.

    Attributes:
        batch: Images of a call.
        threads: Of the processor.
        rounds: Timed calls of each.
        timings: One per model and runtime, in the order of their first call.
    """

    batch: int
    threads: int
    rounds: int
    timings: tuple[Timing, ...]

    @property
    def doubt(self) -> str | None:
        """What to say of times that vary too much to compare; None where none does."""
        shaky = [f"{timing.model} in {timing.runtime}" for timing in self.timings if not timing.steady]
        if not shaky:
            return None
        return (
            f"the times of {', '.join(shaky)} vary by more than half of their median, so ratios to them tell little; "
            "run it again when nothing else runs, and with more rounds"
        )

    @property
    def speed_up_in_pytorch(self) -> float:
        """Of the delivered model, in its faster memory format."""
        own = [timing for timing in self.timings if timing.model == "delivered"]
        return max(timing.speed_up for timing in own if timing.runtime.startswith("PyTorch"))

    def best(self, model: str) -> Timing | None:
        """Return the runtime in which a model gains most over the dense one; None where it was not timed."""
        own = [timing for timing in self.timings if timing.model == model]
        return max(own, key=lambda timing: timing.speed_up, default=None)


@dataclass(frozen=True)
class BenchReport:
    """Speed of a compressed model beside the dense one.

    Attributes:
        device: Name of the processor.
        macs_dense: Of one image.
        macs: Of one image, compressed.
        parameters_dense: Numbers in the dense model.
        parameters: Numbers in the compressed model.
        file_macs: MACs of what files of other runtimes hold of the dense and of the compressed model, such as of a
            detector up to its RPN; None where no file was made.
        settings: One per batch size and number of threads.
        layers: Every layer that was changed, in the order of their calls; at the first setting.
        left: What could not be timed, each with the reason.
    """

    device: str
    macs_dense: int
    macs: int
    parameters_dense: int
    parameters: int
    file_macs: tuple[int, int] | None
    settings: tuple[Setting, ...]
    layers: tuple[LayerSpeed, ...]
    left: tuple[tuple[str, str], ...]

    @property
    def macs_ratio(self) -> float:
        """How many times fewer MACs the compressed model needs."""
        return self.macs_dense / self.macs

    @property
    def file_macs_ratio(self) -> float | None:
        """The same of what files of other runtimes hold; None where there are none."""
        return self.file_macs[0] / self.file_macs[1] if self.file_macs else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "macs_ratio": self.macs_ratio, "file_macs_ratio": self.file_macs_ratio}

"""Post-training static quantisation of an ONNX file, by onnxruntime's own quantiser or by NNCF on OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from norton_plugin.errors import ExportError
from norton_plugin.export.processor import int8_instructions
from norton_plugin.export.refusal import quiet
from norton_plugin.export.runtimes import RUNTIMES, Runtime
from norton_plugin.modules.running import ForwardFunction, is_unordered


@dataclass(frozen=True)
class Int8:
    """How a file is quantised, and on what it is compared.

    Attributes:
        calibration: Inputs (1, C, H, W) as the model takes them, normalised; a few hundred fix the ranges well.
        images: Inputs on which int8 is compared with fp32; the calibration inputs by default.
        labels: Classes of ``images``, for the accuracy.
        runtime: Whose quantiser: ``onnxruntime`` writes an ONNX file, ``openvino`` (NNCF) an IR of two files.

    Raises:
        ExportError: No inputs, labels of another number, or an unknown runtime.
    """

    calibration: Sequence[Tensor]
    images: Sequence[Tensor] | None = None
    labels: Sequence[int] | None = None
    runtime: Runtime = "onnxruntime"

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ExportError(f"runtime is {self.runtime!r}, expected one of {', '.join(RUNTIMES)}")
        if not len(self.calibration) or not len(self.compared):
            raise ExportError("there are no images to calibrate on or to compare on; give at least one of each")
        if self.labels is not None and len(self.labels) != len(self.compared):
            raise ExportError(f"{len(self.labels)} labels for {len(self.compared)} images; expected one for each")

    @property
    def compared(self) -> Sequence[Tensor]:
        """Inputs on which int8 is compared with fp32."""
        return self.calibration if self.images is None else self.images


def check_quantisable(forward_fn: ForwardFunction | None) -> None:
    """Refuse what cannot be compared with its fp32 file.

    Args:
        forward_fn: Runs what is exported; None for a plain call.

    Raises:
        ExportError: It returns things found, in any order.
    """
    if is_unordered(forward_fn):
        raise ExportError("int8 of a whole detector is not made: its boxes cannot be compared; leave out int8 (--int8)")


def int8_path(path: Path, runtime: Runtime) -> Path:
    """Return the quantised file's name: ``model.int8.onnx``, or ``model.int8.xml`` beside its ``.bin``."""
    return path.with_name(f"{path.stem}.int8{'.onnx' if runtime == 'onnxruntime' else '.xml'}")


def quantize(source: Path, target: Path, settings: Int8) -> None:
    """Quantise an ONNX file.

    Args:
        source: In fp32.
        target: As of :func:`int8_path`.
        settings: Calibration inputs and runtime.

    Raises:
        ExportError: The quantiser refuses the file.
    """
    write = _by_onnxruntime if settings.runtime == "onnxruntime" else _by_nncf
    with quiet():
        try:
            write(source, target, settings.calibration)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise ExportError(
                f"the quantiser of {settings.runtime} refuses the model ({type(error).__name__}: {error})"
            ) from error


def _by_onnxruntime(source: Path, target: Path, calibration: Sequence[Tensor]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = ({"input": tensor.numpy()} for tensor in calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    prepared = source.with_name(f"{source.stem}.prepared.onnx")
    try:
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Products of 8 bits overflow the 16-bit sums of processors without instructions for them.
            reduce_range=int8_instructions() == "none",
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        prepared.unlink(missing_ok=True)


def _by_nncf(source: Path, target: Path, calibration: Sequence[Tensor]) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    data = nncf.Dataset(calibration, lambda tensor: tensor.numpy())
    quantized = nncf.quantize(model, data, subset_size=len(calibration))
    openvino.save_model(quantized, target, compress_to_fp16=False)

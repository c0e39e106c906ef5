"""Packages that files of other runtimes need; none is needed to import this one."""

from __future__ import annotations

from norton_plugin.errors import MissingExtraError


def check_export_packages() -> None:
    """Check that what writes and checks ONNX files is installed.

    Raises:
        MissingExtraError: One is absent, or cannot be imported.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise _missing(error, "export") from error


def check_nncf() -> None:
    """Check that NNCF is installed.

    Raises:
        MissingExtraError: It is absent, or cannot be imported.
    """
    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise _missing(error, "int8") from error


def _missing(error: ImportError, extra: str) -> MissingExtraError:
    what = f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
    return MissingExtraError(f"{what}; run: pip install 'norton-plugin[{extra}]'")

"""What the exporter does not take: its own reason, and the module of the model that is to blame."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from norton_plugin.errors import ExportError

_HINTS = r"^(For (more|extended|C\+\+)|consider using|The error above|If you suspect).*$"
_NOISE = re.compile(rf"\x1b\[\d+m|{_HINTS}", re.MULTILINE)
_NODE = re.compile(r"Error when translating node %(\w+)")
_DETECTORS = "torchvision.models.detection."
_LONGEST = 500  # characters of the exporter's reason


@contextmanager
def followed(model: nn.Module) -> Iterator[list[str]]:
    """Keep a list of the modules that are running, outermost first; an exception leaves those that it came from."""
    running: list[str] = []

    def begin(name: str) -> Any:
        return lambda module, arguments: running.append(name)

    def end(module: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
        running.pop()

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end)]
        yield running
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings, logs, graphs and bars of exporters and quantisers: a refusal's reason is in the error."""
    before = logging.root.manager.disable
    with ExitStack() as stack:
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def refused_trace(error: Exception, running: list[str], model: nn.Module) -> ExportError:
    """Describe a model that ``torch.export`` does not take.

    Args:
        error: Whatever it raised.
        running: From :func:`followed`.
        model: That model.
    """
    reason = _reason(error)
    if "specialized" in reason or "Constraints violated" in reason:
        advice = (
            "the model fixes an axis that was to stay open: fix the batch (--batch 1, batch=1), or leave out "
            "--dynamic-size"
        )
    elif any(type(module).__module__.startswith(_DETECTORS) for module in model.modules()):
        advice = "a detector of torchvision is exported by the forward_fn of norton_plugin.zoo.exported_part, unwrapped"
    else:
        advice = "only a model whose steps do not depend on values of tensors can be exported whole"
    return ExportError(f"the exporter refuses {_blamed(running[-1] if running else '')}: {reason}; {advice}")


def refused_conversion(error: Exception, program: Any) -> ExportError:
    """Describe a traced model that cannot be written as ONNX.

    Args:
        error: Whatever ``torch.onnx.export`` raised.
        program: The ``torch.export.ExportedProgram``.
    """
    texts = list(_texts(error))
    node = next((match[1] for match in map(_NODE.search, texts) if match), "")
    return ExportError(
        f"the exporter to ONNX refuses {_blamed(_module_of(node, program))}: {_reason(error)}; another --opset may "
        "have the operation, or export to .pt2"
    )


def _blamed(name: str) -> str:
    return f"module {name!r}" if name else "the model"


def _texts(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def _reason(error: Exception) -> str:
    """Return what the innermost cause says, in one line."""
    innermost: BaseException = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    text = " ".join(_NOISE.sub("", str(innermost)).split())
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{type(innermost).__name__}: {short}"


def _module_of(node: str, program: Any) -> str:
    """Return the module that a node of the decomposed program came from; empty where it is not known."""
    if not node:
        return ""
    try:
        graph = program.run_decompositions().graph
    except Exception:  # it is the conversion that is to be reported, not this
        return ""
    stacks = [found.meta.get("nn_module_stack") for found in graph.nodes if found.name == node]
    paths = [path for path, _ in (stacks[0] or {}).values()] if stacks else []
    return str(paths[-1]).removeprefix("model.") if paths else ""

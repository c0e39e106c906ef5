"""Chains of convolutions as onnxruntime sessions on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from torch import Tensor, nn

from norton_plugin.deploy.lowering import SelectChannels

# onnx and onnxruntime are imported where they are used: no extra of the package installs them.
if TYPE_CHECKING:
    import onnxruntime


def chain_session(chain: nn.Module, x: Tensor) -> onnxruntime.InferenceSession:
    """Return a session that runs a chain.

    Args:
        chain: A convolution, or several in a row; the last may put channels into order.
        x: An input of the shape it will see.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, values, name = [], [], "x"
    for index, module in enumerate(module for module in chain.modules() if not list(module.children())):
        inputs = [name]
        for kind in ("weight", "bias") if isinstance(module, nn.Conv2d) else ("index",):
            value = getattr(module, kind)
            if value is not None:
                inputs.append(f"{kind}{index}")
                values.append(numpy_helper.from_array(value.detach().contiguous().numpy(), inputs[-1]))
        name = f"y{index}"
        nodes.append(_node(module, inputs, name))
    shape = list(x.shape)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return session(model.SerializeToString())


def session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """Return a session on one thread of the processor, from bytes or a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, x: numpy.ndarray) -> list[numpy.ndarray]:
    """Return all outputs for the one input."""
    return session.run(None, {session.get_inputs()[0].name: x})


def _node(module: nn.Module, inputs: list[str], output: str) -> object:
    from onnx import helper

    if isinstance(module, SelectChannels):
        return helper.make_node("Gather", inputs, [output], axis=1)
    if not isinstance(module, nn.Conv2d):
        raise TypeError(f"a chain of convolutions was expected, got {type(module).__name__}")
    return helper.make_node(
        "Conv",
        inputs,
        [output],
        kernel_shape=list(module.kernel_size),
        strides=list(module.stride),
        pads=[*module.padding, *module.padding],
        group=module.groups,
    )

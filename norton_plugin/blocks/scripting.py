"""What ``torch.jit.script`` is told of a layer of factors."""

from __future__ import annotations

from torch import nn

from norton_plugin.errors import SurgeryError


class NotScripted(nn.Module):
    """A layer whose forms and derived weight are Python that ``torch.jit.script`` does not compile.

    ``torch.jit.trace`` and ``torch.export`` record it as any other. Ordinary layers could be given to the compiler
    in its place, but ``torch.jit.script`` puts what it is given into the caller's own model, whose factors would go.
    """

    def __prepare_scriptable__(self) -> nn.Module:
        """Say what to do instead; ``torch.jit.script`` calls it before it looks at the layer.

        Raises:
            SurgeryError: Always.
        """
        raise SurgeryError(
            f"torch.jit.script cannot compile a {type(self).__name__}; make the model ordinary layers first: "
            "norton_plugin.deploy.lower_(model), or norton_plugin.deploy.prepare"
        )

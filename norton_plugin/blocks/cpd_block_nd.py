"""CPDBlocks whose kernels have one or three axes."""

from __future__ import annotations

from norton_plugin.blocks.cpd_block import CPDBlock


class CPDBlock1d(CPDBlock):
    """A 1-D convolution whose filters, matrices (C, Kw), are sums of outer products; see ``CPDBlock``.

    Shape:
        Input (B, in_channels, W), output (B, out_channels, Wo) as of ``nn.Conv1d``. Parameters as of ``CPDBlock``,
        without ``vertical``.
    """

    axes = ("horizontal",)
    output_padding = (0,)


class CPDBlock3d(CPDBlock):
    """A 3-D convolution whose filters, 4-way tensors (C, Kt, Kh, Kw), are sums of outer products; see ``CPDBlock``.

    Shape:
        Input (B, in_channels, D, H, W), output (B, out_channels, Do, Ho, Wo) as of ``nn.Conv3d``. Parameters as of
        ``CPDBlock``, and ``depth`` (K, R, Kt).
    """

    axes = ("depth", "vertical", "horizontal")
    output_padding = (0, 0, 0)


# By the number of axes of the kernel.
CPD_BLOCKS: dict[int, type[CPDBlock]] = {1: CPDBlock1d, 2: CPDBlock, 3: CPDBlock3d}

"""CPDBlock, the layer that owns the factors of its filters, its equivalent forms and its cost."""

from norton_plugin.blocks.cost import ConvCost, break_even_rank, conv_cost, cpd_cost
from norton_plugin.blocks.cpd_block import CPDBlock
from norton_plugin.blocks.forms import FORMS, Form
from norton_plugin.blocks.registration import CPD_LAYER

__all__ = ["CPD_LAYER", "FORMS", "CPDBlock", "ConvCost", "Form", "break_even_rank", "conv_cost", "cpd_cost"]

"""The layers that own factors (CPDBlock, SpatialSVDBlock, CPDLinear), their equivalent forms and their cost."""

from norton_plugin.blocks.balance import balance_
from norton_plugin.blocks.conv_block import ConvBlock, all_in_form
from norton_plugin.blocks.cost import ConvCost, break_even_rank, conv_cost, coupled_cost, cpd_cost, spatial_cost
from norton_plugin.blocks.cpd_block import CPDBlock
from norton_plugin.blocks.cpd_block_nd import CPD_BLOCKS, CPDBlock1d, CPDBlock3d
from norton_plugin.blocks.cpd_linear import CPDLinear
from norton_plugin.blocks.form_choice import form_for
from norton_plugin.blocks.forms import AUTO, FORMS, ChosenForm, Form
from norton_plugin.blocks.registration import CPD_LAYERS, CPD_LINEAR_LAYER, SPATIAL_SVD_LAYER
from norton_plugin.blocks.spatial_svd_block import SpatialSVDBlock

__all__ = [
    "AUTO",
    "CPD_BLOCKS",
    "CPD_LAYERS",
    "CPD_LINEAR_LAYER",
    "FORMS",
    "SPATIAL_SVD_LAYER",
    "CPDBlock",
    "CPDBlock1d",
    "CPDBlock3d",
    "CPDLinear",
    "ChosenForm",
    "ConvBlock",
    "ConvCost",
    "Form",
    "SpatialSVDBlock",
    "all_in_form",
    "balance_",
    "break_even_rank",
    "conv_cost",
    "coupled_cost",
    "cpd_cost",
    "form_for",
    "spatial_cost",
]

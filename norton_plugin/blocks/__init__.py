"""CPDBlock and CPDLinear, the layers that own factors, their equivalent forms and their cost."""

from norton_plugin.blocks.cost import ConvCost, break_even_rank, conv_cost, coupled_cost, cpd_cost
from norton_plugin.blocks.cpd_block import CPDBlock
from norton_plugin.blocks.cpd_linear import CPDLinear
from norton_plugin.blocks.form_choice import form_for
from norton_plugin.blocks.forms import AUTO, FORMS, ChosenForm, Form
from norton_plugin.blocks.registration import CPD_LAYER, CPD_LINEAR_LAYER

__all__ = [
    "AUTO",
    "CPD_LAYER",
    "CPD_LINEAR_LAYER",
    "FORMS",
    "CPDBlock",
    "CPDLinear",
    "ChosenForm",
    "ConvCost",
    "Form",
    "break_even_rank",
    "conv_cost",
    "coupled_cost",
    "cpd_cost",
    "form_for",
]

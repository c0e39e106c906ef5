"""Configs that build a compressed model without the hook."""

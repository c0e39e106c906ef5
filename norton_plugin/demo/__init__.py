"""The demonstration: a small network trained on handwritten digits, compressed three times, and compared.

The network and the images themselves are the source ``demo:digits`` of ``norton_plugin.zoo``.
"""

from norton_plugin.demo.results import CompressedResult, DemoResult, DenseResult
from norton_plugin.demo.run import PAGE, RECIPES, run_demo

__all__ = ["PAGE", "RECIPES", "CompressedResult", "DemoResult", "DenseResult", "run_demo"]

"""Pictures of what models see: class activation maps, and detections of a dense and a compressed model side by side."""

from norton_plugin.pictures.activation import CamImage, CamModel, activation_maps, last_map
from norton_plugin.pictures.activation_grid import draw_grid
from norton_plugin.pictures.comparison import Comparison, compare_models
from norton_plugin.pictures.film import SUFFIXES, film_bytes
from norton_plugin.pictures.reading import Unreadable, find_images, open_image

__all__ = [
    "SUFFIXES",
    "CamImage",
    "CamModel",
    "Comparison",
    "Unreadable",
    "activation_maps",
    "compare_models",
    "draw_grid",
    "film_bytes",
    "find_images",
    "last_map",
    "open_image",
]

from .activation_ranges import (
    activation_grids,
    proposed_grids,
    require_finite,
    sample_activations,
)
from .kept_grids import recalled_activation_grids, recalled_nearest_weights
from .nearest_rounding import nearest_weights
from .pixel_ties import off_ties
from .sensitivity import Sensitivity, measure_sensitivity
from .settings import IMAGES, ZeroqSettings
from .zeroq import make_images

__all__ = [
    "IMAGES",
    "Sensitivity",
    "ZeroqSettings",
    "activation_grids",
    "make_images",
    "measure_sensitivity",
    "nearest_weights",
    "off_ties",
    "proposed_grids",
    "recalled_activation_grids",
    "recalled_nearest_weights",
    "require_finite",
    "sample_activations",
]

from .calibration import (
    SAMPLED_VALUES,
    SYMMETRIC_FROM,
    activation_grids,
    nearest_weights,
    proposed_grids,
    require_finite,
    sample_activations,
)
from .sensitivity import Sensitivity, measure_sensitivity
from .zeroq import CALIBRATION_KEY, IMAGES, make_images

__all__ = [
    "CALIBRATION_KEY",
    "IMAGES",
    "SAMPLED_VALUES",
    "SYMMETRIC_FROM",
    "Sensitivity",
    "activation_grids",
    "make_images",
    "measure_sensitivity",
    "nearest_weights",
    "proposed_grids",
    "require_finite",
    "sample_activations",
]

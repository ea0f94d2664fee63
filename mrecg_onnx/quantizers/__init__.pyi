from .fake_quantization import (
    compile_kernels,
    fake_quantize,
    fake_quantize_weight,
    inner,
    kernels_compiled,
    learnable_fake_quantize,
    quantize_codes,
)
from .grids import LEAST_SCALE, Grid, around_zero, symmetric_eight, weight_codes, whole_reciprocal
from .latent_rounding import LatentRounding
from .plain_grids import plain_grid, restored_grid
from .range_search import P_NORM, search_range, search_weight_range
from .ranges import Estimator, chosen_ranges, gauss_clip, is_laplace, laplace_clip, min_max, mse, range_name
from .rounding import ROUNDINGS, BetaSchedule, LearnedRounding
from .settings import RangeSettings

__all__ = [
    "LEAST_SCALE",
    "P_NORM",
    "ROUNDINGS",
    "BetaSchedule",
    "Estimator",
    "Grid",
    "LatentRounding",
    "LearnedRounding",
    "RangeSettings",
    "around_zero",
    "chosen_ranges",
    "compile_kernels",
    "fake_quantize",
    "fake_quantize_weight",
    "gauss_clip",
    "inner",
    "is_laplace",
    "kernels_compiled",
    "laplace_clip",
    "learnable_fake_quantize",
    "min_max",
    "mse",
    "plain_grid",
    "quantize_codes",
    "range_name",
    "restored_grid",
    "search_range",
    "search_weight_range",
    "symmetric_eight",
    "weight_codes",
    "whole_reciprocal",
]

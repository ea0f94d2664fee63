from .absorption import Absorbed, apply_absorption, choose_absorptions
from .channel_bits import allocate_activations, allocate_weights
from .equalization import Equalized, choose_scales
from .kept_scales import recalled_scales
from .rescaling import apply_scale, bound_channels
from .settings import RewritingSettings
from .streams import Stream, find_streams

__all__ = [
    "Absorbed",
    "Equalized",
    "RewritingSettings",
    "Stream",
    "allocate_activations",
    "allocate_weights",
    "apply_absorption",
    "apply_scale",
    "bound_channels",
    "choose_absorptions",
    "choose_scales",
    "find_streams",
    "recalled_scales",
]

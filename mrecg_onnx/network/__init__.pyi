from .augmentation import Mixing, augmented, mirrored
from .batches import WHOLE, forward_batches, forward_size, images_at_once, interleaved, made_shapes, whole_batches
from .bridging import bridged, own_batch, rebridged
from .parts import advance, read_behind
from .simulation import INT32_MAX, QuantizedWeight, Simulation, State, bias_scale
from .steps import ActivationHook, Network, Step, WeightHook

__all__ = [
    "INT32_MAX",
    "WHOLE",
    "ActivationHook",
    "Mixing",
    "Network",
    "QuantizedWeight",
    "Simulation",
    "State",
    "Step",
    "WeightHook",
    "advance",
    "augmented",
    "bias_scale",
    "bridged",
    "forward_batches",
    "forward_size",
    "images_at_once",
    "interleaved",
    "made_shapes",
    "mirrored",
    "own_batch",
    "read_behind",
    "rebridged",
    "whole_batches",
]

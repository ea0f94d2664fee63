from .batches import WHOLE, forward_batches, forward_size, made_shapes, whole_batches
from .bridging import bridged, own_batch, rebridged
from .simulation import QuantizedWeight, Simulation, State, bias_scale
from .steps import ActivationHook, Network, Step, WeightHook

__all__ = [
    "WHOLE",
    "ActivationHook",
    "Network",
    "QuantizedWeight",
    "Simulation",
    "State",
    "Step",
    "WeightHook",
    "bias_scale",
    "bridged",
    "forward_batches",
    "forward_size",
    "made_shapes",
    "own_batch",
    "rebridged",
    "whole_batches",
]

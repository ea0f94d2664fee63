from .bridging import bridged, own_batch, rebridged
from .network import ActivationHook, Network, Step, WeightHook
from .simulation import QuantizedWeight, Simulation, State, bias_scale, forward_batches, forward_size, whole_batches

__all__ = [
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
    "own_batch",
    "rebridged",
    "whole_batches",
]

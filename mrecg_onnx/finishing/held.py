"""What a run holds in memory that learns the whole network behind its units, known from shapes before anything runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mrecg_onnx.finishing.settings import FinishSettings
from mrecg_onnx.finishing.whole_network import FLOAT_BYTES, KEPT_BYTES, images_together
from mrecg_onnx.learning import Fitting as Learning
from mrecg_onnx.machine import Needs, pick_device
from mrecg_onnx.methods import METHODS
from mrecg_onnx.planning import Footprint

__all__ = ["Fitting"]

#: Times that a step holds what the part of the network that takes the most makes of the images that go together: quantized, for
#: the way back, with gradients, and as the float network has it (measured: benchmarks/memory_limits.py).
COPIES = 6


@dataclass(frozen=True)
class Fitting(Learning):
    """The same of a run with a finishing stage.

    Attributes:
        settings: of the run.
    """

    settings: FinishSettings

    def needs(self, network: Footprint) -> Needs:
        """Memory that the run needs for a network of these sizes."""
        settings, found = self.settings, super().needs(network)
        wanted = settings.finish or (settings.finish is None and METHODS[settings.method].granularity != "none")
        if not wanted or pick_device(settings.device).type != "cpu":
            return found
        together = images_together(settings.batch_size, None, network.maps // FLOAT_BYTES * KEPT_BYTES, "cpu")
        return dataclasses.replace(found, most=max(found.most, COPIES * together * network.maps))

"""What learning holds in memory beside the cached activations, known from shapes before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import Tensor

from mrecg_onnx.data import Dataset, InputSpec
from mrecg_onnx.learning.settings import LearnerSettings
from mrecg_onnx.machine import Needs, Run, pick_device
from mrecg_onnx.methods import method_of
from mrecg_onnx.network import Network, made_shapes
from mrecg_onnx.planning import Footprint, Plan, footprint

__all__ = ["Fitting"]

#: Times that an iteration holds a unit's tensor: as it is, quantized, and a gradient (measured: benchmarks/memory_limits.py).
COPIES = 3
#: The same of a tensor of the whole network that gradients go through: as it is, and its gradient.
WHOLE_COPIES = 2
#: Times that a search for all steps at once holds an image's tensors: 32 images of the widest neighbours (the same measurement).
JOINT_COPIES = 18
#: Images at most that gradients of the network's output are computed for at a time.
FISHER_IMAGES = 32
#: What solvers in closed form hold: rows of a layer's inputs and their products in double precision, in bytes.
SOLVING = 100 * 10**6


@dataclass(frozen=True)
class Fitting:
    """Holds a run to its memory, before anything runs.

    Attributes:
        run: the job.
        settings: of the run.
        made: images are made, through the whole network at once.
    """

    run: Run
    settings: LearnerSettings
    made: bool

    def require(self, graph: ir.Model, plan: Plan, inputs: Sequence[InputSpec], dataset: Dataset | None = None) -> None:
        """Refuse a memory that was asked for and does not do; with ``dataset`` the reading of images gets its part.

        Raises:
            SettingsError: the least that works is named.
        """
        size = footprint(graph, plan, [spec.shape for spec in inputs], self.settings.window)
        self.run.settle(self.needs(size), dataset)

    def require_tensors(self, graph: ir.Model, plan: Plan, network: Network, data: Mapping[str, Tensor]) -> None:
        """The same where sizes of tensors are known only now that ``network`` runs images of ``data``; else nothing.

        Raises:
            SettingsError: as :meth:`require`.
        """
        fed = [x.shape for x in data.values()]
        if not self.run.asked or not footprint(graph, plan, fed).unknown:
            return
        few = {name: x[: network.batch or 2].to(network.device) for name, x in data.items()}
        shapes = {name: shape[1:] for name, shape in made_shapes(network, network.steps, few).items()}
        self.run.settle(self.needs(footprint(graph, plan, fed, self.settings.window, shapes)))

    def needs(self, network: Footprint) -> Needs:
        """Memory that the run needs for a network of these sizes."""
        settings, most = self.settings, [0]
        if pick_device(settings.device).type != "cpu":
            return Needs.of(network)  # files alone run on the CPU
        method, batch = method_of(settings), settings.batch_size
        if method.granularity != "none":
            unit = network.pair if method.merge else network.unit
            most.append(COPIES * batch * unit + (SOLVING if method.solver != "gradient" else 0))
        if method.joint_steps:
            most.append(settings.lapq_images * network.inputs + JOINT_COPIES * network.tensors)
        if settings.loss == "fisher":
            most.append(WHOLE_COPIES * min(batch, FISHER_IMAGES) * network.tensors)
        if self.made:
            most.append(WHOLE_COPIES * batch * network.tensors + (settings.samples or 0) * network.inputs)
        return Needs.of(network, max(most))

"""The calibration set on its way through the network: what every unit reads and what it should answer.

A float copy and a quantized one advance unit by unit, never recomputed from the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrecg_onnx.calibrating import require_finite
from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.data import Dataset
from mrecg_onnx.machine import Pool, Store
from mrecg_onnx.measures import OutputScales, OutputSums, add_sums, output_sums, task_loss
from mrecg_onnx.network import WHOLE, Simulation, Step, augmented, forward_size, made_shapes, mirrored
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.progress import tell
from mrecg_onnx.quantizers import Grid

__all__ = ["Inputs", "Prefix", "UnitData"]

#: Images read at a time.
READ = 16
#: Samples made of an image by ``augment``: itself, and its mirror image or random variants.
COPIES = {"none": 1, "flip": 2, "shift": 4, "crop": 4}


@dataclass
class UnitData:
    """What a unit is trained on: N samples by tensor name.

    Attributes:
        quantized: inputs from the quantized prefix.
        floating: the same inputs from the float network.
        targets: float outputs.
        held_out: indices of samples kept for the comparison with nearest rounding.
        training: all other indices.
        gradients: magnitude of the task loss's gradient at each output, where the loss is weighted by it.
        deferred: tensors whose quantizer acts where a unit reads them, see :class:`Prefix`.
        entries: those of them whose scale this unit learns.
    """

    quantized: dict[str, Store]
    floating: dict[str, Store]
    targets: dict[str, Store]
    training: Tensor
    held_out: Tensor
    gradients: dict[str, Store] = field(default_factory=dict)
    deferred: frozenset[str] = frozenset()
    entries: tuple[str, ...] = ()


@dataclass
class Inputs:
    """The calibration set as the network is fed: float, and as its input quantizers see it.

    Attributes:
        floating: by input name.
        quantized: likewise; the same store where an input has no quantizer.
        count: samples.
        copies: samples made of one image, next to each other, the image itself first.
    """

    floating: dict[str, Store]
    quantized: dict[str, Store]
    count: int
    copies: int = 1

    @classmethod
    def read(
        cls,
        dataset: Dataset,
        simulation: Simulation,
        pool: Pool,
        *,
        quantize_activations: bool,
        augment: str = "none",
        seed: int = 0,
    ) -> Inputs:
        """Read all of ``dataset`` once.

        Args:
            dataset: images or arrays.
            simulation: knows the quantizers of the inputs.
            pool: where the samples are kept.
            quantize_activations: False keeps everything float.
            augment: what follows every image, a row of :data:`COPIES`.
            seed: of random variants.

        Raises:
            DataError: too many files cannot be read.
            SettingsError: variants are asked for and the inputs are no images.
        """
        copies = COPIES[augment]
        if copies > 1 and dataset.preprocess is None:
            raise SettingsError(f"--augment {augment} needs a folder of images: arrays may be anything")
        layout = dataset.preprocess.layout if dataset.preprocess is not None else None
        generator = torch.Generator().manual_seed(seed)
        names = [spec.name for spec in dataset.inputs]
        grids = simulation.activations if quantize_activations else {}
        room = len(dataset) * copies
        floating = {n: Store(pool, room) for n in names}
        quantized = {n: Store(pool, room, grids[n]) if n in grids else floating[n] for n in names}
        count = 0
        for arrays, indices in dataset.batches(READ):
            for name in names:
                x = torch.from_numpy(arrays[name]).to(simulation.network.device)
                if copies > 1:
                    x = _with_variants(x, augment, layout or "nchw", generator)
                for store in {id(s): s for s in (floating[name], quantized[name])}.values():
                    store.write(count, x)
            count += len(indices) * copies
            tell(count // copies, len(dataset), "images")
        for store in (*floating.values(), *quantized.values()):
            store.count = count
        return cls(floating, quantized, count, copies)

    def forget(self) -> None:
        """Let the samples go, once the last prefix has been made of them."""
        self.floating, self.quantized = {}, {}

    def split(self, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
        """Indices to train on and to judge on.

        Drawn image by image: a variant of an image that is learned from is no judge, and those of a judge are left out, as
        the network will be asked about images as they are.
        """
        images = self.count // self.copies
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
        order = order.view(-1, 1) * self.copies + torch.arange(self.copies)
        held = round(images * held_out)
        return order[held:].flatten(), order[:held, 0]


def _with_variants(images: Tensor, augment: str, layout: str, generator: torch.Generator) -> Tensor:
    """``images``, each followed by its variants."""
    if augment == "flip":
        variants = [mirrored(images, layout)]
    else:
        variants = [augmented(images, augment, generator, layout) for _ in range(COPIES[augment] - 1)]
    return torch.stack((images, *variants), 1).flatten(0, 1)


class Prefix:
    """Inputs of the units, advanced unit by unit: a float copy and a quantized one, never recomputed from the image.

    Args:
        simulation: the quantized network.
        units: in order.
        inputs: the calibration set; not changed.
        pool: where activations are kept.
        quantize_activations: False leaves activations in float; only weights are quantized.
        float_inputs: units read the float copy.
        input_scales: a tensor's quantizer belongs to the unit that reads it first, not to the one that makes it (unless
            that reads it as well): such tensors are kept as they are before it.

    Attributes:
        parts: in how many parts images go that went through a unit together, did memory hold them.
    """

    def __init__(
        self,
        simulation: Simulation,
        units: Sequence[UnitPlan],
        inputs: Inputs,
        pool: Pool,
        *,
        quantize_activations: bool,
        float_inputs: bool = False,
        input_scales: bool = False,
    ) -> None:
        self.simulation, self.units, self.pool, self.count = simulation, list(units), pool, inputs.count
        self.quantize_activations, self.float_inputs = quantize_activations, float_inputs
        exact = float_inputs or not quantize_activations
        self.floating, self.quantized = dict(inputs.floating), dict(inputs.floating if exact else inputs.quantized)
        self._output_scales: OutputScales | None = None
        self.parts = 1
        self.deferred = self._deferred() if input_scales and quantize_activations else frozenset()

    def targets(self, unit: UnitPlan) -> dict[str, Store]:
        """Float outputs of ``unit`` on all samples.

        Raises:
            DataError: a tensor of the unit holds NaN or Inf; it is named.
            ModelError: an output has not one row for each sample.
        """
        steps, network = self.steps(unit), self.simulation.network

        def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return network.run(batch, steps, keep=unit.outputs, activation=require_finite)

        return self._run(unit, self.floating, {n: self._store(n) for n in unit.outputs}, run)

    def data(self, unit: UnitPlan, targets: dict[str, Store], training: Tensor, held_out: Tensor) -> UnitData:
        """Everything :func:`~mrecg_onnx.learning.reconstruct_unit` needs."""
        reads, earlier = self._reads(unit), self.units[: self.units.index(unit)]
        known = {n for u in earlier for n in u.inputs}
        return UnitData(
            {n: self.quantized[n] for n in reads},
            {n: self.floating[n] for n in reads},
            targets,
            training,
            held_out,
            deferred=self.deferred,
            entries=tuple(n for n in reads if n in self.deferred and n not in known),
        )

    def gradients(self, unit: UnitPlan, targets: dict[str, Store]) -> dict[str, Store]:
        """Magnitude of the task loss's gradient at the outputs of ``unit``, image by image.

        The unit and everything in front of it is quantized as the simulation has it, everything behind is float (BRECQ's
        diagonal Fisher information, docs/method.md 14).

        Args:
            unit: the next one, not yet advanced over.
            targets: its float outputs.

        Returns:
            |dL/dz| by output; outputs from which the network's are not reached are left out.
        """
        network, reads = self.simulation.network, self._reads(unit)
        behind = [node for later in self.units[self.units.index(unit) + 1 :] for node in later.nodes]
        rest = network.helpers(network.part(behind), [*self.quantized, *unit.outputs])
        made = {name for step in rest for name in step.outputs}
        outputs = [n for n in network.outputs if n in made or n in unit.outputs]
        found = {n: self._store(n) for n in unit.outputs}
        size = max(1, self._forward_size(unit, self.quantized) // 2)
        scales = self.output_scales()
        for start in range(0, self.count, size):
            batch = {n: s.read(start, start + size) for n, s in self.quantized.items()}
            float_batch = {n: s.read(start, start + size) for n, s in self.floating.items() if n in batch}
            values = self.simulation.run(
                {n: batch[n] for n in reads},
                self.steps(unit),
                keep=unit.outputs,
                quantize_activations=self.quantize_activations,
                deferred=self.deferred,
            )
            leaves = {n: values[n].detach().requires_grad_() for n in unit.outputs}
            with torch.no_grad():
                aims = {n: s.read(start, start + size) for n, s in targets.items()}
                reference = network.run({**float_batch, **aims}, rest, keep=outputs)
            loss = task_loss(network.run({**batch, **leaves}, rest, keep=outputs), reference, scales)
            # The loss is a mean over images: times their number each has the gradient it has alone.
            rows = min(size, self.count - start)
            slopes = torch.autograd.grad(loss * rows, list(leaves.values()), allow_unused=True)
            for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
                found[name].write(start, torch.zeros_like(leaf) if slope is None else slope.abs())
        return found

    def output_scales(self) -> OutputScales:
        """What the errors of the network's outputs are divided by; has to be asked for first while the prefix is at its start."""
        if self._output_scales is None:
            network, sums = self.simulation.network, dict[str, OutputSums]()
            inputs, reference = dict[str, Tensor](), dict[str, Tensor]()
            for start in range(0, self.count, WHOLE):
                inputs = {n: s.read(start, start + WHOLE) for n, s in self.floating.items()}
                with torch.no_grad():
                    reference = network.run(inputs)
                add_sums(sums, output_sums(reference, reference))
            self._output_scales = OutputScales.of(sums, reference, inputs)
        return self._output_scales

    def advance(self, unit: UnitPlan, targets: dict[str, Store]) -> None:
        """Put the outputs of the finished ``unit`` where the next units read, and forget what nobody reads any more."""
        steps, later = self.steps(unit), {n for u in self.units[self.units.index(unit) + 1 :] for n in u.inputs}

        def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return self.simulation.run(
                batch,
                steps,
                keep=unit.outputs,
                quantize_activations=self.quantize_activations,
                deferred=self.deferred,
            )

        for name in [n for n in self.floating if n not in later]:
            del self.floating[name]
        grids = self.simulation.activations if self.quantize_activations else {}
        wanted = [n for n in unit.outputs if n in later]
        if wanted and self.float_inputs:
            self.quantized.update({n: targets[n] for n in wanted})
            self.floating.update({n: targets[n] for n in wanted})
        elif wanted:
            made = {n: self._store(n, None if n in self.deferred else grids.get(n)) for n in wanted}
            self.quantized.update(self._run(unit, self.quantized, made, run))
            self.floating.update({n: targets[n] for n in wanted})
        for name in [n for n in self.quantized if n not in later]:
            del self.quantized[name]

    def _run(
        self,
        unit: UnitPlan,
        source: Mapping[str, Store],
        made: dict[str, Store],
        run: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> dict[str, Store]:
        """``made``, filled with what ``run`` makes of all samples."""
        size = self._forward_size(unit, source)
        with torch.no_grad():
            for start in range(0, self.count, size):
                outputs = run({n: source[n].read(start, start + size) for n in self._reads(unit)})
                rows = min(size, self.count - start)
                for name, store in made.items():
                    if outputs[name].dim() == 0 or len(outputs[name]) != rows * store.rows:
                        raise ModelError(
                            f"tensor '{name}' has shape {list(outputs[name].shape)} for {rows} images: reconstruction needs "
                            "the batch in the first dimension; --exclude the layers around it, or use --method nearest"
                        )
                    store.write(start, outputs[name])
        return made

    def _store(self, name: str, grid: Grid | None = None) -> Store:
        """Room for a tensor of all samples."""
        return Store(self.pool, self.count, grid, self.simulation.network.rows.get(name, 1))

    def _forward_size(self, unit: UnitPlan, source: Mapping[str, Store]) -> int:
        """Samples to run at a time."""
        network, sample = self.simulation.network, {n: source[n].read(0, 1) for n in self._reads(unit)}
        return max(
            1, forward_size(made_shapes(network, self.steps(unit), sample).values(), network.device) // self.parts
        )

    def batches(self, unit: UnitPlan) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Inputs of ``unit``, float and quantized, a few samples at a time."""
        size, reads = self._forward_size(unit, self.quantized), self._reads(unit)
        for start in range(0, self.count, size):
            floating, quantized = (
                {n: source[n].read(start, start + size) for n in reads} for source in (self.floating, self.quantized)
            )
            yield floating, quantized

    def _deferred(self) -> frozenset[str]:
        """Quantized tensors that no op of the unit that makes them reads, but a later unit does."""
        later: set[str] = set()
        found = set()
        for unit in reversed(self.units):
            steps = self.steps(unit)
            inside = {n for step in steps for n in step.arguments}
            found |= {n for step in steps for n in step.outputs if n in later and n not in inside}
            later |= set(unit.inputs)
        return frozenset(found & self.simulation.activations.keys())

    def _reads(self, unit: UnitPlan) -> list[str]:
        return [n for n in unit.inputs if n in self.quantized]

    def steps(self, unit: UnitPlan) -> list[Step]:
        """Steps of ``unit`` with the shape computations they need, in order."""
        network = self.simulation.network
        return network.helpers(network.part(unit.nodes), unit.inputs)

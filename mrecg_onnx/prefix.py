"""The calibration set on its way through the network: what every unit reads and what it should answer.

A float copy and a quantized one advance unit by unit, never recomputed from the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrecg_onnx.cache import Pool, Store
from mrecg_onnx.calibration import require_finite
from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.images import Dataset
from mrecg_onnx.network import Step
from mrecg_onnx.plan import UnitPlan
from mrecg_onnx.simulation import Simulation, forward_size

__all__ = ["Inputs", "Prefix", "UnitData"]

#: Images read at a time.
READ = 64


@dataclass
class UnitData:
    """What a unit is trained on: N samples by tensor name.

    Attributes:
        quantized: inputs from the quantized prefix.
        floating: the same inputs from the float network.
        targets: float outputs.
        held_out: indices of samples kept for the comparison with nearest rounding.
        training: all other indices.
    """

    quantized: dict[str, Store]
    floating: dict[str, Store]
    targets: dict[str, Store]
    training: Tensor
    held_out: Tensor


@dataclass
class Inputs:
    """The calibration set as the network is fed: float, and as its input quantizers see it.

    Attributes:
        floating: by input name.
        quantized: likewise; the same store where an input has no quantizer.
        count: samples.
        copies: samples made of one image, next to each other.
    """

    floating: dict[str, Store]
    quantized: dict[str, Store]
    count: int
    copies: int = 1

    @classmethod
    def read(
        cls, dataset: Dataset, simulation: Simulation, pool: Pool, *, quantize_activations: bool, flip: bool = False
    ) -> Inputs:
        """Read all of ``dataset`` once.

        Args:
            dataset: images or arrays.
            simulation: knows the quantizers of the inputs.
            pool: where the samples are kept.
            quantize_activations: False keeps everything float.
            flip: a mirror image follows every image.

        Raises:
            DataError: too many files cannot be read.
            SettingsError: mirror images are asked for and the inputs are no images.
        """
        if flip and dataset.preprocess is None:
            raise SettingsError("--augment flip needs a folder of images: arrays may be anything")
        axis = 2 if dataset.preprocess is not None and dataset.preprocess.layout == "nhwc" else -1
        names, copies = [spec.name for spec in dataset.inputs], 1 + flip
        grids = simulation.activations if quantize_activations else {}
        room = len(dataset) * copies
        floating = {n: Store(pool, room) for n in names}
        quantized = {n: Store(pool, room, grids[n]) if n in grids else floating[n] for n in names}
        count = 0
        for arrays, indices in dataset.batches(READ):
            for name in names:
                x = torch.from_numpy(arrays[name]).to(simulation.network.device)
                if flip:
                    x = torch.stack((x, x.flip(axis)), 1).flatten(0, 1)
                for store in {id(s): s for s in (floating[name], quantized[name])}.values():
                    store.write(count, x)
            count += len(indices) * copies
        for store in (*floating.values(), *quantized.values()):
            store.count = count
        return cls(floating, quantized, count, copies)

    def split(self, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
        """Indices to train on and to judge on, drawn image by image: a mirror image is no judge of its original."""
        images = self.count // self.copies
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
        order = order.view(-1, 1) * self.copies + torch.arange(self.copies)
        held = round(images * held_out)
        return order[held:].flatten(), order[:held].flatten()


class Prefix:
    """Inputs of the units, advanced unit by unit: a float copy and a quantized one, never recomputed from the image."""

    def __init__(
        self,
        simulation: Simulation,
        units: Sequence[UnitPlan],
        inputs: Inputs,
        pool: Pool,
        *,
        quantize_activations: bool,
    ) -> None:
        self.simulation, self.units, self.pool, self.count = simulation, list(units), pool, inputs.count
        self.quantize_activations = quantize_activations
        self.floating, self.quantized = dict(inputs.floating), dict(inputs.quantized)

    def targets(self, unit: UnitPlan) -> dict[str, Store]:
        """Float outputs of ``unit`` on all samples.

        Raises:
            DataError: a tensor of the unit holds NaN or Inf; it is named.
            ModelError: an output has not one row for each sample.
        """
        steps, network = self._steps(unit), self.simulation.network

        def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return network.run(batch, steps, keep=unit.outputs, activation=require_finite)

        return self._run(unit, self.floating, {n: Store(self.pool, self.count) for n in unit.outputs}, run)

    def data(self, unit: UnitPlan, targets: dict[str, Store], training: Tensor, held_out: Tensor) -> UnitData:
        """Everything :func:`reconstruct_unit` needs."""
        reads = self._reads(unit)
        return UnitData(
            {n: self.quantized[n] for n in reads}, {n: self.floating[n] for n in reads}, targets, training, held_out
        )

    def advance(self, unit: UnitPlan, targets: dict[str, Store]) -> None:
        """Put the outputs of the finished ``unit`` where the next units read, and forget what nobody reads any more."""
        steps, later = self._steps(unit), {n for u in self.units[self.units.index(unit) + 1 :] for n in u.inputs}

        def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return self.simulation.run(batch, steps, keep=unit.outputs, quantize_activations=self.quantize_activations)

        for name in [n for n in self.floating if n not in later]:
            del self.floating[name]
        grids = self.simulation.activations if self.quantize_activations else {}
        wanted = [n for n in unit.outputs if n in later]
        if wanted:
            made = {n: Store(self.pool, self.count, grids.get(n)) for n in wanted}
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
                    if outputs[name].dim() == 0 or len(outputs[name]) != rows:
                        raise ModelError(
                            f"tensor '{name}' has shape {list(outputs[name].shape)} for {rows} images: reconstruction needs "
                            "the batch in the first dimension; --exclude the layers around it, or use --method nearest"
                        )
                    store.write(start, outputs[name])
        return made

    def _forward_size(self, unit: UnitPlan, source: Mapping[str, Store]) -> int:
        """Samples to run at a time."""
        largest = 1

        def note(_: str, value: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, value.numel())
            return value

        values = {n: source[n].read(0, 1) for n in self._reads(unit)}
        self.simulation.network.run(values, self._steps(unit), activation=note)
        return forward_size(largest)

    def _reads(self, unit: UnitPlan) -> list[str]:
        return [n for n in unit.inputs if n in self.quantized]

    def _steps(self, unit: UnitPlan) -> list[Step]:
        network = self.simulation.network
        return network.helpers(network.part(unit.nodes), unit.inputs)

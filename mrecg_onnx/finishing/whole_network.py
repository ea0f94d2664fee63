"""One step's work on the whole network: both networks on augmented images, and the distance of their answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mrecg_onnx.learning import TrainingPass
from mrecg_onnx.measures import OutputScales, task_loss
from mrecg_onnx.network import Simulation, Step, made_shapes
from mrecg_onnx.quantizers import fake_quantize

__all__ = ["FLOAT_BYTES", "KEPT_BYTES", "WholePass", "images_together", "largest_slice", "slices", "training_bytes"]

#: Softens class scores: what the float network says of the classes that it does not choose counts, too.
TEMPERATURE = 2.0
#: Bytes that training keeps of each value that a step makes: the value, its quantized copy, and what both passes add on top. And
#: those of the value alone.
KEPT_BYTES, FLOAT_BYTES = 10, 4
#: Bytes that the images which go together may take in the part of the network that takes the most, by device. On the CPU
#: MobileNetV2 takes as long in parts of 4 images as in parts of 32; a GPU needs more to be busy.
TOGETHER = {"cpu": 96 << 20, "cuda": 4 << 30}


@dataclass(kw_only=True)
class WholePass(TrainingPass):
    """The quantized network in training.

    Attributes:
        scales: what errors of the outputs are divided by, or which output holds class scores.
        parts: the network's steps, cut where little is alive; one part keeps all activations for the way back, of several each
            is computed once more there (gradient checkpointing, Chen et al. 2016).
    """

    scales: OutputScales
    parts: list[list[Step]]

    def activation(self, name: str, value: Tensor) -> Tensor:
        """``value`` fake-quantized; gradients of what is not learned go straight through."""
        grid = self.simulation.activations.get(name)
        if grid is None or name in self.trainable.start:
            return super().activation(name, value)
        return value + (fake_quantize(value.detach(), grid) - value.detach())

    def outputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of the file in training, differentiable: float where no quantizer is in front of them."""
        network, plain = self.simulation.network, self.simulation.float_outputs
        values = {name: self.activation(name, x) for name, x in inputs.items()}
        found: dict[str, Tensor] = {}
        needed = _needed(self.parts, network.outputs)
        for part, keep in zip(self.parts, needed, strict=True):
            made = [n for step in part for n in step.outputs]
            seen = [n for n in made if n in plain]
            names = [n for n in keep if n in values or n in made]

            def run(*given: Tensor, part: list[Step] = part, read: tuple[str, ...] = tuple(values), names: list[str] = names,
                    seen: list[str] = seen) -> tuple[Tensor, ...]:  # fmt: skip
                noted: dict[str, Tensor] = {}

                def hook(name: str, value: Tensor) -> Tensor:
                    if name in seen:
                        noted[name] = value
                    return self.activation(name, value)

                known = dict(zip(read, given, strict=True))
                made = network.run(known, part, keep=names, activation=hook, weight=self.weight)
                return (*(made[n] for n in names), *(noted[n] for n in seen))

            given = tuple(values.values())
            # Nothing is drawn at random inside, and what a GPU records cannot ask for its state.
            again = {"use_reentrant": False, "preserve_rng_state": False}
            result = run(*given) if len(self.parts) == 1 else checkpoint(run, *given, **again)  # type: ignore[arg-type]
            values = dict(zip(names, result[: len(names)], strict=True))
            found |= dict(zip(seen, result[len(names) :], strict=True))
        return {name: found.get(name, values.get(name, inputs.get(name))) for name in network.outputs}  # type: ignore[misc]

    def loss(self, inputs: dict[str, Tensor], answers: dict[str, Tensor]) -> Tensor:
        """Distance from the float network's ``answers``: KL divergence of softened class scores, else relative squares."""
        outputs, scores = self.outputs(inputs), self.scales.scores
        if scores is None:
            return self.scales.error(outputs, answers)
        softened, wanted = ({scores: x[scores].float() / TEMPERATURE} for x in (outputs, answers))
        return task_loss(softened, wanted, self.scales) * TEMPERATURE**2


def _needed(parts: Sequence[Sequence[Step]], outputs: Sequence[str]) -> list[list[str]]:
    """What is read behind each of ``parts``."""
    found: list[list[str]] = []
    later = dict.fromkeys(outputs)
    for part in reversed(parts):
        found.append(list(later))
        later |= dict.fromkeys(n for step in part for n in step.arguments if n is not None)
    return found[::-1]


def training_bytes(simulation: Simulation, inputs: dict[str, Tensor]) -> tuple[int, list[int]]:
    """Bytes that training keeps of one image, in all and by step; ``inputs`` is one image (a batch where that is fixed)."""
    network = simulation.network
    shapes, images = made_shapes(network, network.steps, inputs), len(next(iter(inputs.values())))
    each = [KEPT_BYTES * sum(math.prod(shapes[n]) for n in step.outputs) // images for step in network.steps]
    return sum(each), each


def images_together(size: int, batch: int | None, unit: int, device: str) -> int:
    """How many of ``size`` images go through the network together.

    Gradients of what goes together are one sum: the number is the network's alone, whatever memory is free.

    Args:
        size: images of a step.
        batch: images that the network wants, None for any number.
        unit: bytes of one image in the part that takes the most (:func:`largest_slice`).
        device: "cpu" or "cuda".
    """
    own = batch or 1
    return max(batch or 2, min(size, TOGETHER[device] // max(1, unit) // own * own))


def slices(simulation: Simulation, sizes: Sequence[int], most: int) -> list[list[Step]]:
    """The network's steps in parts behind units, each of ``most`` bytes (of ``sizes`` by step) where its units allow it."""
    steps, plan = simulation.network.steps, simulation.plan
    place = {step.node: i for i, step in enumerate(steps)}
    ends = {
        max(place[n] for n in unit.nodes if n in place) for unit in plan.units if any(n in place for n in unit.nodes)
    }
    parts: list[list[Step]] = [[]]
    held = 0
    for piece in _pieces(len(steps), sorted(ends)):
        size = sum(sizes[i] for i in piece)
        if parts[-1] and held + size > most:
            parts.append([])
            held = 0
        parts[-1] += [steps[i] for i in piece]
        held += size
    return parts


def largest_slice(simulation: Simulation, sizes: Sequence[int]) -> int:
    """Bytes of the largest part that :func:`slices` cannot cut, at least 1."""
    held = {step.node: size for step, size in zip(simulation.network.steps, sizes, strict=True)}
    return max(1, *(sum(held[step.node] for step in part) for part in slices(simulation, sizes, 0)))


def _pieces(count: int, ends: Sequence[int]) -> Iterator[range]:
    start = 0
    for end in (*ends, count - 1):
        if end >= start:
            yield range(start, end + 1)
            start = end + 1

"""Held-out images and variants of them, and what a network's answers to them are worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mrecg_onnx.data import Dataset
from mrecg_onnx.finishing.settings import FinishSettings
from mrecg_onnx.learning import Inputs
from mrecg_onnx.machine import Workers
from mrecg_onnx.measures import OutputScales, OutputSums, add_sums, output_sums, task_loss
from mrecg_onnx.network import Mixing, Simulation, augmented

__all__ = ["Judge", "Variants"]

#: Held-out images that decide, at most, and how often each is looked at: as it is, and in variants and mixtures like those that
#: are learned from. What a network was trained on it knows by heart: calibration images from there, as they are, say nothing
#: of the answers where it has doubts (ResNet-20 W3A3: divergence .173 -> .229 on them, .288 -> .239 on test images).
JUDGES, LOOKS = 256, 4
#: Images that held-out networks are run on at a time.
FORWARD = 16


@dataclass(frozen=True)
class Variants:
    """Random variants of what the network is fed: of images, whose format is known; arrays may be anything.

    Attributes:
        kind: see :func:`mrecg_onnx.network.augmented`.
        layout: order of the axes of images, None for arrays.
    """

    kind: str
    layout: str | None

    @classmethod
    def of(cls, settings: FinishSettings, dataset: Dataset) -> Variants:
        """What ``settings`` say, else shifts, of the images of ``dataset``."""
        layout = dataset.preprocess.layout or "nchw" if dataset.preprocess is not None else None
        return cls(settings.augment if settings.augment != "none" else "shift", layout)

    def draw(self, given: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """A variant of each image of ``given`` (by input), half of them mixed with others; arrays as they are."""
        mixings: dict[int, Mixing] = {}  # by length: what belongs together is mixed alike
        found = {}
        for name, x in given.items():
            if self.layout is not None and x.dim() == 4:
                varied = augmented(x, self.kind, generator, self.layout)
                if len(x) not in mixings:
                    mixings[len(x)] = Mixing.draw(len(x), generator)
                found[name] = mixings[len(x)].mix(varied)
            else:
                found[name] = x
        return found


class Judge:
    """The loss on held-out images, variants and mixtures of them, of all processes together."""

    def __init__(
        self, simulation: Simulation, inputs: Inputs, index: Tensor, workers: Workers, variants: Variants
    ) -> None:
        self.simulation, self.workers, self.inputs, self.variants = simulation, workers, inputs, variants
        self.parts = torch.split(index[:JUDGES], FORWARD)
        sums: dict[str, OutputSums] = {}
        self.answers: list[dict[str, Tensor]] = []
        for images in self._images():
            with torch.no_grad():
                answers = simulation.network.run(images)
            add_sums(sums, output_sums(answers, answers))
            self.answers.append(answers)
            last = images
        together: dict[str, OutputSums] = {}
        for found in workers.gather(sums):
            add_sums(together, found)
        self.scales = OutputScales.of(together, self.answers[-1], last)

    def _images(self) -> Iterator[dict[str, Tensor]]:
        """What the networks are run on, the same each time."""
        generator = torch.Generator().manual_seed(0)
        for look in range(LOOKS if self.variants.layout is not None else 1):
            for part in self.parts:
                images = {n: s.gather(part) for n, s in self.inputs.floating.items()}
                yield self.variants.draw(images, generator) if look else images

    def loss(self) -> float:
        """Mean over the images of :func:`mrecg_onnx.measures.task_loss` for the network as the file has it."""
        total, count = 0.0, 0
        for images, answers in zip(self._images(), self.answers, strict=True):
            rows = len(next(iter(images.values())))
            total += rows * float(task_loss(self.simulation.run(images), answers, self.scales))
            count += rows
        total, images_of_all = self.workers.total([total, count])
        return total / max(1.0, images_of_all)

"""Errors of a network's outputs in torch, each output relative to its own variance (docs/method.md 19)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mrecg_onnx.measures.metrics import OutputSums, combined_error

__all__ = ["OutputScales", "image_errors", "output_error", "output_sums", "with_float_outputs"]


def output_sums(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, OutputSums]:
    """The sums of every output of ``reference`` (float network) and ``outputs``, by name; added up in float64."""
    found = {}
    for name, wanted in reference.items():
        if not wanted.is_floating_point():
            found[name] = OutputSums(wanted.numel(), noise=float((wanted != outputs[name]).sum()), floating=False)
            continue
        r, o = wanted.detach().float(), outputs[name].detach().float()
        parts = (r.sum(dtype=torch.float64), _energy(r), _energy(o - r))
        found[name] = OutputSums(r.numel(), *torch.stack(parts).tolist())
    return found


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(dtype=torch.float64)


def output_error(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Relative L2 error of a network's outputs: :func:`mrecg_onnx.measures.metrics.combined_error` of all of them."""
    return combined_error(output_sums(outputs, reference).values())


def image_errors(outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor], signal: Mapping[str, float]) -> Tensor:
    """Squared error of each image, float64 of shape [N]: their mean is the square of :func:`output_error`.

    Args:
        outputs: of the network that is measured, by name, [N, ...].
        reference: of the float network.
        signal: what squared differences are divided by, for each float output (:attr:`OutputSums.signal` of all images, of
            which those here may be some).
    """
    floating = [name for name, wanted in reference.items() if wanted.is_floating_point()]
    found = []
    for name in floating or reference:
        o, r = outputs[name].detach(), reference[name].detach()
        differs = (o.double() - r.double()).square() / signal[name] if floating else (o != r).double()
        values = differs.reshape(len(r), -1)
        found.append(values.mean(1) if values.shape[1] else values.new_zeros(len(r)))
    return torch.stack(found).mean(0)


def with_float_outputs(made: Mapping[str, Tensor], floats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``made``, outputs as ``floats`` has them: in the file an output is float, also where others read it quantized."""
    return {name: floats.get(name, value) for name, value in made.items()}


@dataclass(frozen=True)
class OutputScales:
    """What the outputs' squared errors are divided by, settled once on the float outputs.

    Attributes:
        signal: by name of each float output, its variance (:attr:`mrecg_onnx.measures.metrics.OutputSums.signal`; 1 where it
            is 0).
        scores: the only float output where that is class scores [N, C] (C > 1) and not a reconstruction, which has as many
            values as an input; None else.
    """

    signal: dict[str, float]
    scores: str | None = None

    @classmethod
    def of(
        cls, sums: Mapping[str, OutputSums], reference: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> OutputScales:
        """From the sums of the float outputs, some rows of them, and rows of the network's inputs."""
        signal = {name: found.signal or 1.0 for name, found in sums.items() if found.floating}
        sizes = {x[:1].numel() for x in inputs.values()}
        columns = {name: reference[name].shape[1] for name in signal if reference[name].dim() == 2}
        scores = [name for name, count in columns.items() if count > 1 and count not in sizes]
        return cls(signal, scores[0] if scores and len(signal) == 1 else None)

    def error(self, outputs: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
        """Mean over the float outputs in ``reference`` of their relative mean squared error; differentiable, shape ()."""
        errors = [
            (outputs[n].float() - r.float()).square().mean() / self.signal[n]
            for n, r in reference.items()
            if n in self.signal and r.numel()
        ]
        return torch.stack(errors).mean() if errors else torch.zeros(())

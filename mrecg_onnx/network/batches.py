"""How many images go through a network at a time, and in which batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mrecg_onnx.data import Dataset
from mrecg_onnx.machine import channels_last
from mrecg_onnx.network.steps import Network, Step

__all__ = ["WHOLE", "forward_batches", "forward_size", "images_at_once", "interleaved", "made_shapes", "whole_batches"]

#: Images to run through a whole network at a time where each of its tensors is looked at.
WHOLE = 16
#: Numbers of the largest tensor of a unit (:func:`forward_size`) and of a whole network (:func:`images_at_once`), whose later
#: tensors are small: 4 MB and 16 MB of float32, which a processor's caches still hold; a GPU needs more to be busy.
FORWARD_ELEMENTS, WHOLE_ELEMENTS, FORWARD_ELEMENTS_CUDA = 1 << 20, 1 << 22, 1 << 26


def forward_batches(
    data: Mapping[str, Tensor] | Dataset, size: int, device: torch.device, limit: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Slices of ``data`` (tensors of shape [N, ...]) of ``size`` samples on ``device``.

    Of tensors these are the first ``limit`` samples; a data set is read slice by slice, ``limit`` samples spread over it.
    """
    if isinstance(data, Dataset):
        for arrays in data.spread(size, limit):
            yield {name: _dense(torch.from_numpy(x).to(device)) for name, x in arrays.items()}
        return
    count = min(len(next(iter(data.values()))), limit or 10**12)
    for start in range(0, count, size):
        yield {name: _dense(x[start : min(start + size, count)].to(device)) for name, x in data.items()}


def whole_batches(
    data: Mapping[str, Tensor], size: int, network: Network, limit: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """The same where the network is run in parts: at a batch of its own, each slice is of whole batches.

    What is between two parts may belong to a whole batch, and does not say that the last one lacks images. The last image is
    repeated there.
    """
    batch = network.batch or 1
    count = min(len(next(iter(data.values()))), limit or 10**12)
    filled = -(-count // batch) * batch
    index = torch.arange(filled).clamp(max=count - 1)
    whole = {name: x[index.to(x.device)] if filled > count else x for name, x in data.items()}
    yield from forward_batches(whole, -(-size // batch) * batch, network.device, filled)


def interleaved(count: int, apart: int) -> Tensor:
    """Indices of ``count`` images, every ``apart``-th one first, then those behind them: neighbours of a set are often alike."""
    return torch.tensor([i for start in range(apart) for i in range(start, count, apart)])


def made_shapes(network: Network, steps: Sequence[Step], sample: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that ``steps`` make of ``sample``: one image's values of what they read, by name."""
    with torch.no_grad():
        made = network.run(sample, steps, keep=[name for step in steps for name in step.outputs])
    return {name: tuple(value.shape) for name, value in made.items()}


def forward_size(shapes: Iterable[tuple[int, ...]], device: torch.device, elements: int = FORWARD_ELEMENTS) -> int:
    """Images to run forward at a time on ``device`` where one image's tensors have ``shapes``: 1 to 256."""
    elements = FORWARD_ELEMENTS_CUDA if device.type == "cuda" else elements
    return max(1, min(256, elements // max((1, *map(math.prod, shapes)))))


def images_at_once(network: Network, data: Mapping[str, Tensor], most: int = WHOLE) -> int:
    """Images such as those of ``data`` to run through ``network`` at a time: at most ``most``, and its own batch at least.

    Memory of large tensors is new for every one of them: the system clears it, which takes as long as computing.
    """
    # Not on one: some graphs do not run on one image, whose axis a Squeeze takes away.
    few = min(2, len(next(iter(data.values()))))
    shapes: list[tuple[int, ...]] = []

    def note(_: str, value: Tensor) -> Tensor:
        shapes.append(tuple(value.shape))
        return value

    with torch.no_grad():
        network.run(next(forward_batches(data, few, network.device, few)), activation=note)
    each = ((-(-math.prod(shape) // few),) for shape in shapes)
    return max(min(most, forward_size(each, network.device, WHOLE_ELEMENTS)), network.batch or 1)


def _dense(x: Tensor) -> Tensor:
    """``x`` in one piece, images in the layout that suits its device (:func:`mrecg_onnx.machine.cache.channels_last`)."""
    last = x.dim() == 4 and channels_last(x.device)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

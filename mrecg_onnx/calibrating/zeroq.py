"""Calibration without data: images on which a network's BatchNormalization layers see what they saw in training.

Source: Cai et al. 2020, "ZeroQ: A Novel Zero Shot Quantization Framework"; docs/method.md 10. From x ~ N(0, 1) a batch is
brought, by Adam on its pixels, to the least

    sum_l ||mu_l(x) - mu_l||^2 / C_l + ||sd_l(x) - sd_l||^2 / C_l

over the input of every BatchNormalization l, with the statistics it stored, and over the input itself, whose channels are to
have mean 0 and standard deviation 1 under the usual normalization. The network is the user's before anything is folded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mrecg_onnx.calibrating.settings import IMAGES
from mrecg_onnx.converters import normalize, to_torch
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.files import require_regular, writing_whole
from mrecg_onnx.converters.save import digest
from mrecg_onnx.data import IMAGENET_MEAN, IMAGENET_STD, ZEROQ, Dataset, InputSpec, Preprocess
from mrecg_onnx.machine import ALONE, Workers, without_cache_folder
from mrecg_onnx.network import Network, bridged, own_batch
from mrecg_onnx.progress import Progress, Report

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    from mrecg_onnx.calibrating.settings import ZeroqSettings

__all__ = ["SyntheticDataset", "make_images"]

logger = logging.getLogger(__name__)

#: Adam's rate in standard deviations of a pixel, its floor, and iterations without gain before it falls to a tenth.
RATE, LEAST_RATE, PATIENCE = 0.5, 1e-4, 50
#: Added to variances under a root: its slope at 0 is infinite.
EPSILON = 1e-6
#: Samples of noise on which a network of a fixed batch is compared with ONNX Runtime.
NOISE = 8
#: Iterations between two reports.
REPORT_EVERY = 10


class SyntheticDataset(Dataset):
    """Made inputs, all in memory.

    Args:
        spec: the model's input.
        images: (N, ...) as the model takes them.
        origin: how they were made, plain JSON data.
        preprocess: what real images would go through; None where the model takes none.
    """

    def __init__(
        self, spec: InputSpec, images: NDArray[Any], origin: dict[str, Any], preprocess: Preprocess | None
    ) -> None:
        super().__init__([spec], preprocess=preprocess)
        self.origin = origin
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def _share(self, rank: int, size: int) -> Dataset:
        assert self.origin is not None
        return SyntheticDataset(self.inputs[0], self._images[rank::size], self.origin, self.preprocess)

    def fingerprint(self) -> str:
        """Changes with any pixel."""
        return hashlib.sha256(np.ascontiguousarray(self._images).data).hexdigest()

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        kept = list(indices)
        return {self.inputs[0].name: self._images[kept]}, kept


@dataclass(frozen=True)
class _Target:
    """Statistics wanted of one tensor, channels along ``axis``."""

    mean: Tensor
    std: Tensor
    axis: int = 1

    def error(self, x: Tensor) -> Tensor:
        """Squared differences of mean and standard deviation, each a mean over channels; shape ()."""
        axes = [a for a in range(x.dim()) if a != self.axis]
        var, mean = torch.var_mean(x.float(), axes, correction=0)
        std = torch.sqrt(var + EPSILON)
        return (mean - self.mean).square().mean() + (std - self.std).square().mean()


@dataclass(frozen=True)
class _Input:
    """What the model wants to be fed: shape of one image, the values expected in it, and its channel axis (batch first)."""

    spec: InputSpec
    shape: tuple[int, ...]
    mean: Tensor
    std: Tensor
    axis: int
    preprocess: Preprocess | None

    def along(self, values: Tensor) -> Tensor:
        """One value a channel, shaped to broadcast over a batch."""
        shape = [1] * (len(self.shape) + 1)
        shape[self.axis] = -1
        return values.view(shape)


_NO_STATISTICS = (
    "--calib zeroq: the model has no BatchNormalization left to take statistics from; export it without folding them "
    "(torch.onnx.export: training=TrainingMode.PRESERVE, do_constant_folding=False), or give images"
)


def make_images(
    model: onnx.ModelProto,
    inputs: Sequence[InputSpec],
    settings: ZeroqSettings,
    device: torch.device,
    *,
    workers: Workers = ALONE,
    report: Report | None = None,
    keep: str | Path | None = None,
) -> SyntheticDataset:
    """Make calibration images for ``model``; the same in all processes.

    Args:
        model: the float model with its BatchNormalization.
        inputs: what it is fed.
        settings: ``samples``, ``zeroq_iters``, ``batch_size``, ``seed`` and ``preprocess`` count.
        device: where to run the network.
        workers: the first process makes the images, the others get them.
        report: called as the work proceeds.
        keep: folder where finished images are kept, and looked for.

    Raises:
        DataError: the model has no BatchNormalization with constant statistics, or not one float input of a known size;
            the images do not converge to numbers; ``keep`` cannot be written.
        ConversionError: a node cannot be converted to torch.
    """
    try:
        wanted = _input(inputs, settings.preprocess)
    except SettingsError:
        nodes = itertools.chain(model.graph.node, *(function.node for function in model.functions))
        if not any(
            node.op_type == "BatchNormalization" for node in nodes
        ):  # then mean and deviation would not help either
            raise DataError(_NO_STATISTICS) from None
        raise
    samples = settings.samples or IMAGES

    def make() -> tuple[NDArray[Any], dict[str, Any]]:
        path = None if keep is None else Path(keep) / f"zeroq-{_key(model, wanted, settings, samples)}.npz"
        if path is not None and path.exists():
            return _load(path)
        made = _generate(model, wanted, settings, device, samples, report)
        if path is not None:
            _save(path, *made)
        return made

    images, origin = workers.once(make)
    return SyntheticDataset(wanted.spec, images, origin, wanted.preprocess)


def _input(inputs: Sequence[InputSpec], preprocess: Preprocess) -> _Input:
    """What is to be made.

    Raises:
        DataError: the model has several inputs, or one that is not float or has a free size.
        SettingsError: an image setting contradicts the model.
    """
    if len(inputs) != 1 or inputs[0].dtype.kind != "f":
        named = ", ".join(str(spec) for spec in inputs)
        raise DataError(f"zeroq makes images for models with one float input, this one has {named}: give data")
    spec = inputs[0]
    if len(spec.shape) == 4 and (spec.shape[1] in {1, 3, None} or spec.shape[3] in {1, 3}):  # an image
        resolved = preprocess.resolve(spec)
        assert resolved.crop is not None
        assert resolved.mean is not None
        assert resolved.scale is not None
        channels, mean, std = len(resolved.mean), np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        elif resolved.color == "bgr":
            mean, std = mean[::-1], std[::-1]
        # Pixels have ImageNet's statistics; under ImageNet's normalization, the default, that is 0 and 1.
        pixel = 255 * resolved.scale
        expected = torch.tensor((pixel * mean - np.array(resolved.mean)) / np.array(resolved.std), dtype=torch.float32)
        spread = torch.tensor(pixel * std / np.array(resolved.std), dtype=torch.float32)
        if resolved.layout == "nhwc":
            return _Input(spec, (*resolved.crop, channels), expected, spread, 3, resolved)
        return _Input(spec, (channels, *resolved.crop), expected, spread, 1, resolved)
    free = [size for size in spec.shape[1:] if size is None]
    if len(spec.shape) < 2 or free:
        raise DataError(f"zeroq cannot tell the size of {spec}: export it with fixed sizes, or give data")
    shape = tuple(int(size or 0) for size in spec.shape[1:])
    return _Input(spec, shape, torch.zeros(shape[0]), torch.ones(shape[0]), 1, None)


def _generate(
    model: onnx.ModelProto,
    wanted: _Input,
    settings: ZeroqSettings,
    device: torch.device,
    samples: int,
    report: Report | None,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Images (samples, ...) in the input's type, and how they were made."""
    network = _network(model, wanted, device)
    targets = _targets(network)
    parts, errors = [], []
    sizes = _batches(samples, settings.batch_size)
    for number, size in enumerate(sizes):

        def tell(iteration: int, loss: float, number: int = number) -> None:
            if report is not None:
                report(Progress(ZEROQ, "", number, len(sizes), iteration, settings.zeroq_iters, loss))

        generator = torch.Generator().manual_seed(settings.seed + number)
        images, before, after = _make_batch(network, targets, wanted, size, settings.zeroq_iters, generator, tell)
        parts.append(images.cpu().numpy().astype(wanted.spec.dtype))
        errors.append((size * before, size * after))
    before, after = (sum(column) / samples for column in zip(*errors, strict=True))
    logger.info("zeroq: distance from %d statistics %.4g -> %.4g", len(targets), before, after)
    origin = {
        "data": ZEROQ,
        "images": samples,
        "iterations": settings.zeroq_iters,
        "batch_size": sizes[0],
        "seed": settings.seed,
        "layers": len(targets),
        "distance_of_noise": before,
        "distance": after,
    }
    return np.concatenate(parts), origin


def _network(model: onnx.ModelProto, wanted: _Input, device: torch.device) -> Network:
    """``model`` with its BatchNormalization in torch, at the batch at which it has to run."""
    if own_batch(model) is None:
        return Network(to_torch(normalize(model, keep_batchnorm=True)), device)
    noise = np.random.default_rng(0).standard_normal((NOISE, *wanted.shape)).astype(wanted.spec.dtype)

    def graph(free: bool) -> ir.Model:
        return normalize(model, keep_batchnorm=True, free=free)

    return bridged(model, graph, {wanted.spec.name: noise}, device, lambda _: ())[1]


def _batches(samples: int, size: int) -> list[int]:
    """Sizes of batches of at most ``size`` images, as equal as can be: statistics of a small rest would be poor."""
    count = -(-samples // size)
    return [samples // count + (i < samples % count) for i in range(count)]


def _targets(network: Network) -> dict[str, _Target]:
    """What every BatchNormalization wants its input to be, by tensor.

    Raises:
        DataError: there is none.
    """
    found = {}
    for step in network.steps:
        if step.op != "BatchNormalization":
            continue
        source, *_, mean, var = (name or "" for name in step.arguments)
        if mean in network.constants and var in network.constants:
            std = torch.sqrt(network.constants[var].float() + EPSILON)
            found[source] = _Target(network.constants[mean].float(), std)
    if not found:
        raise DataError(_NO_STATISTICS)
    return found


def _make_batch(
    network: Network,
    targets: dict[str, _Target],
    wanted: _Input,
    size: int,
    iters: int,
    generator: torch.Generator,
    report: Callable[[int, float], None],
) -> tuple[Tensor, float, float]:
    """One batch of images, and its distance from the stored statistics before and after.

    Raises:
        DataError: the distance is NaN or Inf.
    """
    device = network.device
    noise = torch.randn(size, *wanted.shape, generator=generator).to(device).requires_grad_()
    mean, std = wanted.along(wanted.mean).to(device), wanted.along(wanted.std).to(device)
    own = _Target(wanted.mean.to(device), wanted.std.to(device), wanted.axis)
    dtype = torch.from_numpy(np.zeros(0, wanted.spec.dtype)).dtype
    steps = _until_last(network, targets)
    without_cache_folder()
    optimizer = torch.optim.Adam([noise], lr=RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=PATIENCE, min_lr=LEAST_RATE)

    def errors_of(x: Tensor) -> Tensor:
        errors = [own.error(x)]

        def look(name: str, value: Tensor) -> Tensor:
            if name in targets:
                errors.append(targets[name].error(value))
            return value

        look(wanted.spec.name, x)
        network.run({wanted.spec.name: x.to(dtype)}, steps, keep=(), activation=look)
        return torch.stack(errors)

    first, last, least, best = math.nan, math.nan, math.inf, noise.detach().clone()
    for iteration in range(iters + 1):
        errors = errors_of(noise * std + mean)
        total = errors.sum()
        loss, statistics = float(total.detach()), float(errors[1:].detach().sum())
        if not math.isfinite(loss):
            raise DataError("--calib zeroq: the network computes NaN or Inf on made images: give real ones")
        if iteration == 0:
            first = statistics
        if loss < least:
            least, last, best = loss, statistics, noise.detach().clone()
        if iteration % REPORT_EVERY == 0:
            report(iteration, loss)
        if iteration < iters:
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step(loss)
    return best * std + mean, first, last


def _until_last(network: Network, targets: dict[str, _Target]) -> list[Any]:
    """Steps up to the last tensor with statistics: what follows does not count."""
    last = max((i for i, step in enumerate(network.steps) if set(step.outputs) & set(targets)), default=-1)
    return network.steps[: last + 1]


def _key(model: onnx.ModelProto, wanted: _Input, settings: ZeroqSettings, samples: int) -> str:
    """Changes with everything that the images depend on."""
    made_of = [samples, settings.zeroq_iters, settings.batch_size, settings.seed, wanted.shape, wanted.axis]
    made_of += [wanted.mean.tolist(), wanted.std.tolist(), str(wanted.spec)]
    return hashlib.sha256((digest(model) + json.dumps(made_of)).encode()).hexdigest()[:16]


def _load(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    try:
        require_regular(path)
        with np.load(path, allow_pickle=False) as found:
            return found["images"], json.loads(str(found["origin"]))
    except Exception as error:  # a torn file fails in many ways
        raise DataError(f"'{path}' cannot be read ({error}): remove it and start again") from error


def _save(path: Path, images: NDArray[Any], origin: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing_whole(path) as temporary:
            np.savez(temporary, images=images, origin=json.dumps(origin))
    except OSError as error:
        raise DataError(f"made images cannot be kept in '{path}' ({error.strerror or error})") from error

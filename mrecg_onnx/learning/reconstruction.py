"""Reconstruction of one unit: rounding and activation scales learned so that the unit's output stays what it was.

The loop of the MRECG code base (docs/method.md 2): loss = mean over batch and space of the channel-summed
squared error to the float output, plus the rounding regularizer; inputs from the quantized prefix, mixed element by element
with the float ones under drop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.learning.windows import Window, WindowPlan, plan_windows
from mrecg_onnx.machine import ALONE, Batch, Iterations, Store, Workers
from mrecg_onnx.measures import OutputSums
from mrecg_onnx.network import QuantizedWeight, Simulation, Step, bias_scale, forward_size
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers import ROUNDINGS, BetaSchedule, Grid, LearnedRounding, fake_quantize, learnable_fake_quantize

__all__ = ["LearningRates", "UnitResult", "default_rates", "reconstruct_unit", "reconstruction_loss"]

#: Published iterations, and Adam's rate for V there (QDrop, MRECG).
PAPER_ITERS, PAPER_LR_ROUNDING = 20000, 1e-3
#: Rate for the logarithms of scales at as many iterations. The published 4e-5 for activation scales of about 0.3 is an eighth
#: of it; with weight scales among what is learned MobileNetV2's first units end 14 to 40 % lower this way.
LR_SCALE = 1e-3
#: Rates grow as iterations shrink, (PAPER_ITERS / iters)^EXPONENT: 300 iterations learn best near 3e-2.
EXPONENT = 0.8
#: Devices on which torch's Adam takes one pass over a variable.
FUSED = frozenset({"cpu", "cuda"})
#: Iterations between reports: asking a GPU for the loss makes it wait.
REPORTED, REPORTED_CUDA = 10, 100
#: Below so many iterations larger steps only do harm: the rates stop growing.
SHORTEST = 150


@dataclass(frozen=True)
class LearningRates:
    """Adam's rates: ``rounding`` for V, ``scale`` relative to the activation scale."""

    rounding: float
    scale: float


def default_rates(iters: int) -> LearningRates:
    """Rates for ``iters`` iterations: the published ones at 20,000, larger in shorter runs (measured, see docs)."""
    factor = max(1.0, PAPER_ITERS / max(iters, SHORTEST)) ** EXPONENT
    return LearningRates(PAPER_LR_ROUNDING * factor, LR_SCALE * factor)


def reconstruction_loss(
    output: Tensor, target: Tensor, knee: float | None = None, power: float = 2.0, gradient: Tensor | None = None
) -> Tensor:
    """Error of a unit's output, summed over channels (dim 1), mean over batch and space; shape ().

    Args:
        output: the quantized unit's output.
        target: the float one, same shape.
        knee: None for the squared error (docs/method.md 2); else twice the Huber loss: e^2 for errors below d = ``knee`` and
            2 d |e| - d^2 above. Some networks carry values of sixty standard deviations that hardly matter to their
            output; squared, they are all that a unit learns.
        power: exponent of the error where there is no knee; BRECQ learns activation scales with 2.4.
        gradient: magnitude g of the task loss's gradient, the output's shape: squared errors are weighted by (g + 1)^2, the
            diagonal Fisher information with the damping of BRECQ's code.
    """
    if gradient is not None:
        total = ((output - target) * (gradient + 1.0)).square().sum()
    elif power != 2.0:
        total = (output - target).abs().pow(power).sum()
    elif knee is None:
        total = functional.mse_loss(output, target, reduction="sum")
    else:
        total = 2.0 * functional.huber_loss(output, target, reduction="sum", delta=knee)
    return total / (output.numel() / (output.shape[1] if output.dim() > 1 else 1))


def _knees(targets: Mapping[str, Store], share: float | None, workers: Workers) -> dict[str, float | None]:
    """Knee of the loss at each output: ``share`` of the float output's standard deviation, None for squares."""
    if share is None:
        return dict.fromkeys(targets)
    found = {}
    for name, store in targets.items():
        count, total, squares = workers.total(store.moments)
        found[name] = share * max(math.sqrt(max(0.0, squares / count - (total / count) ** 2)), 1e-6)
    return found  # type: ignore[return-value]


def output_weights(targets: Mapping[str, Store], power: float, workers: Workers) -> dict[str, float]:
    """Weight of each output's loss in a unit: 1 where it has one; of several none outweighs another by its unit of measure.

    The loss of an output is divided by the ``power`` of its deviation about its mean, and multiplied by that of the outputs'
    geometric mean: where they are alike nothing changes.
    """
    found = {}
    for name, store in targets.items():
        count, total, squares = workers.total(store.moments)
        found[name] = math.sqrt(OutputSums(count, total, squares).signal or 1.0)
    if len(found) < 2:
        return dict.fromkeys(found, 1.0)
    middle = math.exp(sum(map(math.log, found.values())) / len(found))
    return {name: (middle / spread) ** power for name, spread in found.items()}


class _Masks:
    """Drop masks: on a GPU drawn there, on the CPU cut from a bank of random bits at random places, as cheap as a slice.

    Attributes:
        local: the GPU's generators, none on the CPU.
    """

    def __init__(self, probability: float, device: torch.device, generator: torch.Generator) -> None:
        self.probability, self.device, self.generator = probability, device, generator
        self.bank = torch.empty(0, device=device)
        self.uses = 0
        self.local: tuple[torch.Generator, ...] = ()
        self.restart()

    @property
    def active(self) -> bool:
        """False where everything is quantized: then there are no masks."""
        return self.probability < 1.0

    def restart(self) -> None:
        """Draw from a new generator of the GPU."""
        if self.device.type == "cuda" and self.active:
            seed = int(torch.randint(0, 1 << 62, (), generator=self.generator))
            self.local = (torch.Generator(self.device).manual_seed(seed),)

    def draw(self, like: Tensor) -> Tensor | None:
        """1 with ``probability``, else 0, ``like``'s shape, float32; None where everything is quantized."""
        if not self.active:
            return None
        if self.local:
            return torch.empty_like(like, dtype=torch.float32).bernoulli_(self.probability, generator=self.local[0])
        count = like.numel()
        # A bank larger than what is cut from it, renewed now and then, keeps masks of different steps apart.
        if self.bank.numel() < 2 * count or self.uses >= 256:
            size = max(2 * count, self.bank.numel())
            bank = torch.rand(size, device="cpu", generator=self.generator) < self.probability
            self.bank, self.uses = bank.to(self.device, torch.float32), 0
        self.uses += 1
        start = int(torch.randint(0, self.bank.numel() - count + 1, (), generator=self.generator))
        if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
            return self.bank.as_strided(like.shape, like.stride(), start)
        return self.bank[start : start + count].view(like.shape)


class _Trainable:
    """Everything a unit learns: rounding variables and bias shifts by layer, log-ratios of scales by quantizer."""

    def __init__(
        self,
        unit: UnitPlan,
        simulation: Simulation,
        made: Sequence[str],
        *,
        learn_scales: bool,
        learn_weight_scales: bool,
        learn_bias: bool,
        rounding: str | None = "adaround",
    ) -> None:
        self.rounding: dict[str, LearnedRounding] = {}
        self.bias: dict[str, Tensor] = {}
        self.spread: dict[str, Tensor] = {}
        self.shift: dict[str, Tensor] = {}
        self.log_gain: dict[str, Tensor] = {}
        for name in unit.layers:
            module = simulation.network.step(name).module
            if name in simulation.weights and rounding is not None:
                weight: Tensor = module.weight.detach()  # type: ignore[assignment, operator]
                self.rounding[name] = ROUNDINGS[rounding](weight, simulation.weights[name].grid)
                scale = simulation.weights[name].grid.scale
                self.log_gain[name] = torch.zeros_like(scale, requires_grad=learn_weight_scales)
                bias: Tensor | None = simulation.biases.get(name, module.bias)  # type: ignore[arg-type]
                if bias is not None:
                    self.bias[name] = bias.detach()
                    self.spread[name] = self.bias[name].abs().mean().clamp(min=1e-6)
                    self.shift[name] = torch.zeros_like(self.bias[name], requires_grad=learn_bias)
        self.start = {name: simulation.activations[name] for name in made if name in simulation.activations}
        self.zero_point = {name: float(grid.zero_point) for name, grid in self.start.items()}
        device = simulation.network.device
        self.log_ratio = {n: torch.zeros((), device=device, requires_grad=learn_scales) for n in self.start}
        for name in reversed(list(self.start)):
            for copy in simulation.quantizers[name].copies if name in simulation.quantizers else ():
                if copy in self.start and self.start[copy] is self.start[name]:
                    self.log_ratio[copy] = self.log_ratio[name]  # one grid stays one

    def scale(self, name: str) -> Tensor:
        """Current scale of a quantizer: a ratio learned in log space stays positive and makes its rate relative."""
        return self.start[name].scale * torch.exp(self.log_ratio[name])

    def grids(self) -> dict[str, Grid]:
        """Learned activation grids."""
        return {n: replace(g, scale=self.scale(n).detach()) for n, g in self.start.items()}

    def biases(self) -> dict[str, Tensor]:
        """Learned biases."""
        return {
            n: (b + self.shift[n] * self.spread[n]).detach()
            for n, b in self.bias.items()
            if self.shift[n].requires_grad
        }

    def current_bias(self, name: str) -> Tensor | None:
        """Differentiable bias: the shift is counted in units of the bias's own spread, so one rate suits all layers."""
        return self.bias[name] + self.shift[name] * self.spread[name] if name in self.bias else None

    def codes(self) -> dict[str, QuantizedWeight]:
        """Hard-rounded weights."""
        return {name: QuantizedWeight(r.hard_codes(), self.weight_grid(name)) for name, r in self.rounding.items()}

    def gain(self, name: str) -> Tensor:
        """Differentiable ratio of a layer's weight scale to the searched one, shaped to multiply the weight."""
        rounding = self.rounding[name]
        return rounding.grid.shaped(torch.exp(self.log_gain[name]), rounding.variables[0].dim())

    def weight_grid(self, name: str) -> Grid:
        """Learned weight grid."""
        grid = self.rounding[name].grid
        return replace(grid, scale=grid.scale * torch.exp(self.log_gain[name].detach()))


@dataclass
class _Loop:
    unit: UnitPlan
    steps: list[Step]
    simulation: Simulation
    data: UnitData
    trainable: _Trainable
    masks: _Masks
    quantize_activations: bool
    knees: dict[str, float | None]
    weights: dict[str, float]
    rounding_weight: float = 0.0
    power: float = 2.0
    beta: float | Tensor | None = None
    window: Window | None = None
    recorded: bool = False
    fixed: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, step: Step) -> tuple[Tensor, Tensor | None]:
        rounding = self.trainable.rounding.get(step.node)
        module = step.module
        if rounding is None and step.node in self.simulation.weights:
            quantized = self.simulation.weights[step.node]
            if step.node not in self.fixed:
                self.fixed[step.node] = quantized.dequantize()
            return self.fixed[step.node], self._integer_bias(step, self.simulation.bias(step), quantized.grid)
        if rounding is None:
            return module.weight, module.bias  # type: ignore[return-value]
        grid = self.trainable.weight_grid(step.node)
        weight = rounding.soft(self.beta, self.rounding_weight) * self.trainable.gain(step.node)
        return weight, self._integer_bias(step, self.trainable.current_bias(step.node), grid)

    def _integer_bias(self, step: Step, bias: Tensor | None, weight: Grid) -> Tensor | None:
        """``bias`` rounded to the int32 grid of the file, straight-through.

        At 4 bits its steps s_x * s_w are as wide as those of the layer's output where a channel's weights are large
        (1.3 in MobileNetV2's first depthwise layer): what is learned has to know.
        """
        if bias is None or not self.quantize_activations:
            return bias
        layer = self.simulation.layer(step.node)
        name = self.simulation.quantizer_of(layer.input)
        if name is None:
            return bias
        learned = name in self.trainable.start
        scale = self.trainable.scale(name) if learned else self.simulation.activations[name].scale
        unit = bias_scale(scale, weight, layer).detach()
        return bias + (torch.round(bias / unit) * unit - bias).detach()

    def activation(self, name: str, value: Tensor) -> Tensor:
        if not self.quantize_activations or name not in self.trainable.start:
            return value
        return self._quantized(name, value, self.masks.draw(value))

    def _quantized(self, name: str, value: Tensor, keep: Tensor | None) -> Tensor:
        grid = self.trainable.start[name]
        zero_point = self.trainable.zero_point[name]
        return learnable_fake_quantize(value, self.trainable.scale(name), zero_point, grid.qmax, keep)

    def batch(self, index: Tensor) -> Batch:
        """What an iteration reads of the samples ``index``, in the current window."""
        read, aim = (None, None) if self.window is None else (self.window.read, self.window.aim)
        data, mixed = self.data, self.data.floating if self.masks.active else {}
        places = {store.place: index.to(store.place, non_blocking=True) for store in data.targets.values()}
        found: Batch = {}
        for part, stores, region in (
            ("quantized", data.quantized, read),
            ("floating", mixed, read),
            ("target", data.targets, aim),
            ("gradient", data.gradients, aim),
        ):
            found |= {
                (part, name): store.gather(places.get(store.place, index), region) for name, store in stores.items()
            }
        if self.window is not None and self.recorded:  # what is recorded cannot read numbers from Python
            for part, (first, stop) in zip(("rows", "columns"), self.window.use, strict=True):
                found["use", part] = torch.arange(first, stop, device=self.simulation.network.device)
        return found

    def _used(self, output: Tensor, batch: Batch) -> Tensor:
        """The part of an output that counts."""
        if ("use", "rows") in batch:
            return output.index_select(2, batch["use", "rows"]).index_select(3, batch["use", "columns"])
        if self.window is not None:
            (top, bottom), (left, right) = self.window.use
            return output[:, :, top:bottom, left:right]
        return output

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The unit's inputs, quantized and float ones mixed element by element."""
        result = {}
        for name in self.data.quantized:
            x = batch["quantized", name]
            if name in self.data.deferred and self.quantize_activations:
                learned = name in self.trainable.start  # the drop of an input is the one below
                x = self._quantized(name, x, None) if learned else fake_quantize(x, self.simulation.activations[name])
            mask = self.masks.draw(x) if x.is_floating_point() else None
            result[name] = x if mask is None else torch.lerp(batch["floating", name], x, mask)
        return result

    def loss(self, batch: Batch) -> Tensor:
        """Reconstruction loss on a batch of the current window."""
        outputs = self.simulation.network.run(
            self.inputs(batch), self.steps, keep=self.unit.outputs, activation=self.activation, weight=self.weight
        )
        total = torch.zeros((), device=self.simulation.network.device)
        for name in self.data.targets:
            output = self._used(outputs[name], batch)
            gradient = batch.get(("gradient", name))
            loss = reconstruction_loss(output, batch["target", name], self.knees[name], self.power, gradient)
            total = total + self.weights[name] * loss
        return total


def evaluate_unit(
    unit: UnitPlan,
    steps: list[Step],
    simulation: Simulation,
    data: UnitData,
    index: Tensor,
    *,
    quantize_activations: bool,
    batch_size: int,
    knees: Mapping[str, float | None],
    weights: Mapping[str, float],
    power: float = 2.0,
    workers: Workers = ALONE,
) -> float:
    """Mean reconstruction loss of the unit as ``simulation`` has it now, over the samples ``index``."""
    total, count = 0.0, 0
    for part in torch.split(index, batch_size):
        batch = {name: store.gather(part) for name, store in data.quantized.items()}
        outputs = simulation.run(
            batch, steps, keep=unit.outputs, quantize_activations=quantize_activations, deferred=data.deferred
        )
        gradients = {n: store.gather(part) for n, store in data.gradients.items()}
        losses = [
            weights[n] * reconstruction_loss(outputs[n], store.gather(part), knees[n], power, gradients.get(n))
            for n, store in data.targets.items()
        ]
        total += len(part) * float(torch.stack(losses).sum())
        count += len(part)
    total, samples = workers.total([total, count])
    return total / max(1.0, samples)


@dataclass(frozen=True)
class _Group:
    """Variables with one rate of Adam; ``decays``: it falls to 0 along a cosine."""

    params: list[Tensor]
    rate: float
    decays: bool


def _shapes(loop: _Loop) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the unit for one sample, and of the network's constants."""
    found = {name: tuple(constant.shape) for name, constant in loop.simulation.network.constants.items()}

    def note(name: str, value: Tensor) -> Tensor:
        found[name] = tuple(value.shape)
        return value

    values = {n: store.read(0, 1) for n, store in loop.data.quantized.items()}
    for name, value in values.items():
        note(name, value)
    with torch.no_grad():
        loop.simulation.network.run(values, loop.steps, activation=note)
    return found


class _Number:
    """A number that changes from one iteration to the next: what is recorded on a GPU reads it from there."""

    def __init__(self, device: torch.device, *, recorded: bool) -> None:
        self.tensor = torch.zeros((), device=device) if recorded else None

    def set(self, value: float) -> float | Tensor:
        """``value``, as iterations read it."""
        return value if self.tensor is None else self.tensor.fill_(value)


def _records(device: torch.device, workers: Workers) -> bool:
    """Iterations are recorded: on a GPU, where no other process takes part in them."""
    return device.type == "cuda" and workers.size == 1


def _learn(
    loop: _Loop,
    groups: Sequence[_Group],
    windows: WindowPlan | None,
    iters: int,
    batch_size: int,
    generator: torch.Generator,
    beta_at: BetaSchedule,
    workers: Workers,
    report: Callable[[int, float], None] | None,
) -> None:
    """Adam on ``groups`` for ``iters`` batches of the training samples."""
    device = loop.simulation.network.device
    loop.recorded = record = _records(device, workers)
    rates, beta = [_Number(device, recorded=record) for _ in groups], _Number(device, recorded=record)
    optimizer = torch.optim.Adam(
        [{"params": g.params, "lr": number.set(g.rate)} for g, number in zip(groups, rates, strict=True)],
        fused=device.type in FUSED,
        capturable=record,
    )

    def iterate(batch: Batch) -> Tensor:
        loss = loop.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        workers.mean_([t.grad for group in groups for t in group.params if t.grad is not None])
        optimizer.step()
        return loss.detach()

    masks, training = loop.masks, loop.data.training
    iterations = Iterations(iterate, device, record=record, generators=lambda: masks.local, restart=masks.restart)
    every = REPORTED_CUDA if device.type == "cuda" else REPORTED
    with iterations.stream():
        for step in range(iters):
            index = training[torch.randint(0, len(training), (batch_size,), generator=generator)]
            if windows is not None:
                loop.window = windows.draw(generator)
            for group, entry, number in zip(groups, optimizer.param_groups, rates, strict=True):
                if group.decays:
                    entry["lr"] = number.set(group.rate * 0.5 * (1 + math.cos(math.pi * step / iters)))
            now = beta_at(step)
            loop.beta = now if now is None else beta.set(now)
            loss = iterations(now is None, loop.batch(index))
            if report is not None and (step % every == every - 1 or step == iters - 1):
                report(step + 1, float(loss))
        optimizer.zero_grad(set_to_none=True)


def reconstruct_unit(
    unit: UnitPlan,
    simulation: Simulation,
    data: UnitData,
    *,
    iters: int,
    batch_size: int,
    rates: LearningRates,
    keep_quantized: float | None,
    learn_scales: bool,
    learn_weight_scales: bool,
    learn_bias: bool,
    rounding_weight: float,
    knee: float | None,
    window: int,
    seed: int,
    clock: Callable[[], float],
    rounding: str | None = "adaround",
    anneal: str = "linear",
    power: float = 2.0,
    workers: Workers = ALONE,
    report: Callable[[int, float], None] | None = None,
) -> UnitResult:
    """Learn one unit and write what is better, learned or nearest, into ``simulation``.

    Args:
        unit: what to learn.
        simulation: holds nearest-rounded weights and searched ranges of the unit; changed.
        data: inputs and targets.
        iters: iterations.
        batch_size: samples an iteration in this process, drawn with replacement.
        rates: Adam's learning rates; the scale's falls to 0 along a cosine.
        keep_quantized: probability of an element to be quantized; None trains with float activations.
        learn_scales: activation scales are learned too.
        learn_weight_scales: so are those of weights, one a channel. Noisy inputs want smaller gains than clean ones.
        learn_bias: biases are learned too (they are int32 in the file: free to move).
        rounding_weight: weight of the rounding regularizer.
        knee: see :func:`reconstruction_loss`, in standard deviations of the output; None for the squared error.
        window: side of the largest map in pixels, 0 for whole maps.
        seed: for batches, windows and masks.
        clock: seconds, monotonic.
        rounding: a row of :data:`mrecg_onnx.quantizers.rounding.ROUNDINGS`; None leaves weights and biases as they are.
        anneal: schedule of the regularizer, a row of :data:`mrecg_onnx.quantizers.rounding.ANNEALS`.
        power: see :func:`reconstruction_loss`.
        workers: the processes that learn this unit together, each on its own samples.
        report: called with (iteration, loss) every now and then.

    Returns:
        Losses before and after, and what was kept.
    """
    begin = clock()
    network = simulation.network
    inputs = list(data.quantized)
    steps = network.helpers(network.part(unit.nodes), inputs)
    made = [*data.entries, *(name for step in steps for name in step.outputs if name not in data.deferred)]
    generator = torch.Generator().manual_seed(seed)
    quantize = keep_quantized is not None
    trainable = _Trainable(
        unit,
        simulation,
        made,
        learn_scales=learn_scales and quantize,
        learn_weight_scales=learn_weight_scales,
        learn_bias=learn_bias,
        rounding=rounding,
    )
    knees, weights = _knees(data.targets, knee, workers), output_weights(data.targets, power, workers)
    masks = _Masks(keep_quantized if keep_quantized is not None else 1.0, network.device, generator)
    loop = _Loop(unit, steps, simulation, data, trainable, masks, quantize, knees, weights, rounding_weight, power)
    judge = data.held_out if len(data.held_out) else data.training
    shapes = _shapes(loop)
    size = forward_size(max(math.prod(shape[1:]) for shape in shapes.values()), network.device)
    options = {"quantize_activations": quantize, "batch_size": size, "knees": knees, "weights": weights, "power": power}
    options["workers"] = workers
    nearest = evaluate_unit(unit, steps, simulation, data, judge, **options)  # type: ignore[arg-type]
    scales = [t for t in {id(t): t for t in trainable.log_ratio.values()}.values() if t.requires_grad]
    if not unit.layers or (not trainable.rounding and (rounding is not None or not scales)):
        return UnitResult(unit.name, unit.layers, 0, nearest, nearest, "nearest", 0.0, clock() - begin)
    windows = plan_windows(steps, shapes, inputs, unit.outputs, window)

    kinds = list(trainable.rounding.values())
    smooth = scales + [t for t in (*trainable.shift.values(), *trainable.log_gain.values()) if t.requires_grad]
    groups: list[_Group] = []
    if kinds:
        variables = [t for r in kinds for t in r.variables]
        groups.append(_Group(variables, rates.rounding * kinds[0].rate, decays=kinds[0].decays))
    if smooth:
        groups.append(_Group(smooth, rates.scale, decays=True))
    _learn(loop, groups, windows, iters, batch_size, generator, BetaSchedule(iters, anneal=anneal), workers, report)

    before = dict(simulation.weights), dict(simulation.activations), dict(simulation.biases)
    simulation.weights.update(trainable.codes())
    simulation.biases.update(trainable.biases())
    if learn_scales and quantize:
        simulation.activations.update(trainable.grids())
    learned = evaluate_unit(unit, steps, simulation, data, judge, **options)  # type: ignore[arg-type]
    kept = "learned" if learned < nearest else "nearest"
    if kept == "nearest":
        simulation.weights.update({n: before[0][n] for n in trainable.rounding})
        simulation.activations.update({n: before[1][n] for n in trainable.start})
        simulation.biases = before[2]
    sizes = [r.variables[0].numel() for r in kinds]
    unsettled = sum(r.unsettled() * n for r, n in zip(kinds, sizes, strict=True)) / max(1, sum(sizes))
    return UnitResult(unit.name, unit.layers, iters, nearest, learned, kept, unsettled, clock() - begin)

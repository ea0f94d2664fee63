"""The loop that learns a unit: what it computes is what the file will, its losses and rates are the formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers.architectures import residual
from helpers.one_unit import data_of, single, stage_of
from helpers.stages import Stage

from mrecg_onnx.learning import UnitData, default_rates
from mrecg_onnx.learning.descent import Group
from mrecg_onnx.learning.judging import Judge, evaluate_unit
from mrecg_onnx.learning.loop import Loop, learn
from mrecg_onnx.learning.losses import output_knees, output_weights, reconstruction_loss
from mrecg_onnx.learning.masks import Masks
from mrecg_onnx.learning.trainable import Trainable
from mrecg_onnx.learning.windows import Window
from mrecg_onnx.machine import ALONE, Store
from mrecg_onnx.network import bias_scale
from mrecg_onnx.quantizers import BetaSchedule, fake_quantize

CPU = torch.device("cpu")


def loop_of(stage: Stage, unit=None, probability: float = 1.0, data: UnitData | None = None, **more) -> Loop:
    unit = unit or stage.plan.units[0]
    steps = stage.network.part(unit.nodes)
    made = [name for step in steps for name in step.outputs]
    options = {
        "learn_scales": True,
        "learn_weight_scales": True,
        "learn_bias": True,
        "rounding": "adaround",
    }
    trainable = Trainable(unit, stage.simulation, made, **(options | more.pop("trainable", {})))
    data = data or data_of(stage, unit)
    masks = Masks(probability, CPU, torch.Generator().manual_seed(0))
    given = {
        "quantize_activations": True,
        "knees": dict.fromkeys(unit.outputs),
        "weights": dict.fromkeys(unit.outputs, 1.0),
    }
    parts = {"unit": unit, "steps": steps, "simulation": stage.simulation, "data": data}
    return Loop(**parts, trainable=trainable, masks=masks, **(given | more))


# --- biases ------------------------------------------------------------------------------------------------------


def test_bias_in_the_loop_is_on_the_int32_steps_of_the_file_and_its_gradient_goes_straight_through():
    stage = stage_of()
    unit = stage.plan.units[0]
    loop = loop_of(stage, unit)
    layer = stage.simulation.layer(unit.layers[0])
    step = stage.network.step(layer.name)
    own = step.module.bias.detach()
    scale = bias_scale(stage.simulation.input_grid(layer).scale, stage.simulation.weights[layer.name].grid, layer)
    _, bias = loop.weight(step)
    torch.testing.assert_close(bias, torch.round(own / scale) * scale)
    assert float((bias.detach() - own).abs().max()) > 0.01 * float(scale.max())
    slope = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
    (bias * slope).sum().backward()
    # A shift is counted in units of the mean magnitude of the bias.
    torch.testing.assert_close(loop.trainable.shift[layer.name].grad, slope * own.abs().mean())


def test_steps_of_the_bias_follow_the_scales_that_are_learned():
    stage = stage_of()
    loop = loop_of(stage)
    second = stage.simulation.layer("conv2")
    name = stage.simulation.quantizer_of(second.input)
    assert name in loop.trainable.start
    with torch.no_grad():
        loop.trainable.log_ratio[name].fill_(math.log(1.5))
        loop.trainable.log_gain["conv2"].fill_(math.log(0.7))
    scale = 1.5 * stage.simulation.activations[name].scale * 0.7 * stage.simulation.weights["conv2"].grid.scale
    step = stage.network.step("conv2")
    bias = loop.weight(step)[1]
    own = step.module.bias.detach()
    torch.testing.assert_close(bias.detach(), torch.round(own / scale) * scale)


@pytest.mark.parametrize("trained", [True, False])
def test_bias_beside_float_activations_is_float(trained):
    stage = stage_of()
    loop = loop_of(stage, quantize_activations=False) if trained else loop_of(stage)
    if not trained:
        stage.simulation.activations.pop("input")
    step = stage.network.step("conv")
    assert torch.equal(loop.weight(step)[1].detach(), step.module.bias.detach())


def test_layer_that_is_not_learned_is_as_the_file_has_it():
    stage = stage_of()
    loop = loop_of(stage, trainable={"rounding": None})
    step = stage.network.step("conv")
    weight, bias = loop.weight(step)
    expected, wanted = stage.simulation.weight_hook()(step)
    assert torch.equal(weight, expected)
    torch.testing.assert_close(bias, wanted)
    stage.simulation.weights.clear()
    assert loop.weight(step)[0] is step.module.weight


# --- weights and scales ------------------------------------------------------------------------------------------


def test_soft_weight_is_multiplied_by_the_gain_and_so_is_the_scale_of_its_codes():
    stage = stage_of()
    loop = loop_of(stage)
    step = stage.network.step("conv")
    before = loop.weight(step)[0].detach()
    gains = torch.linspace(0.5, 2.0, len(before))
    with torch.no_grad():
        loop.trainable.log_gain["conv"].copy_(gains.log())
        for rounding in loop.trainable.rounding.values():
            rounding.V.copy_(torch.where(rounding.V >= 0, 9.0, -9.0))
    soft = loop.weight(step)[0].detach()
    codes = loop.trainable.codes()["conv"]
    torch.testing.assert_close(codes.grid.scale, stage.simulation.weights["conv"].grid.scale * gains)
    torch.testing.assert_close(soft, codes.dequantize(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(soft, before)


def test_learned_scale_is_the_searched_one_times_the_exponential_of_its_variable():
    stage = stage_of(single)
    loop = loop_of(stage)
    (name,) = loop.trainable.start
    start = stage.simulation.activations[name]
    x = torch.linspace(-2, 3, 99)
    torch.testing.assert_close(loop.activation(name, x), fake_quantize(x, start))
    with torch.no_grad():
        loop.trainable.log_ratio[name].fill_(math.log(1.25))
    wider = replace(start, scale=1.25 * start.scale)
    torch.testing.assert_close(loop.activation(name, x).detach(), fake_quantize(x, wider))
    torch.testing.assert_close(loop.trainable.grids()[name].scale, wider.scale)
    assert loop.activation("nobody", x) is x
    assert loop_of(stage, quantize_activations=False).activation(name, x) is x


def test_learned_biases_are_the_own_ones_and_a_shift_in_units_of_their_spread():
    stage = stage_of()
    trainable = loop_of(stage).trainable
    own = stage.network.step("conv").module.bias.detach()
    assert torch.equal(trainable.biases()["conv"], own)
    with torch.no_grad():
        trainable.shift["conv"].fill_(2.0)
    torch.testing.assert_close(trainable.biases()["conv"], own + 2.0 * own.abs().mean())
    assert loop_of(stage, trainable={"learn_bias": False}).trainable.biases() == {}
    stage.simulation.biases["conv"] = own * 3
    assert torch.equal(loop_of(stage).trainable.biases()["conv"], own * 3)


def test_tiny_biases_can_still_move():
    stage = stage_of()
    stage.simulation.biases["conv"] = torch.zeros_like(stage.network.step("conv").module.bias)
    assert float(loop_of(stage).trainable.spread["conv"]) == pytest.approx(1e-6)


# --- batches -----------------------------------------------------------------------------------------------------


def test_batch_holds_the_samples_in_the_window():
    stage = stage_of()
    loop = loop_of(stage, probability=0.5)
    index = torch.tensor([3, 0, 3])
    whole = loop.batch(index)
    (name,), (output,) = loop.unit.inputs, loop.unit.outputs
    assert torch.equal(whole["quantized", name], loop.data.quantized[name].read(0, 99)[index])
    assert torch.equal(whole["floating", name], loop.data.floating[name].read(0, 99)[index])
    assert torch.equal(whole["target", output], loop.data.targets[output].read(0, 99)[index])
    loop.window = Window(read=((1, 9), (2, 12)), use=((1, 5), (2, 8)), aim=((2, 6), (4, 10)))
    cut = loop.batch(index)
    assert torch.equal(cut["quantized", name], whole["quantized", name][:, :, 1:9, 2:12])
    assert torch.equal(cut["floating", name], whole["floating", name][:, :, 1:9, 2:12])
    assert torch.equal(cut["target", output], whole["target", output][:, :, 2:6, 4:10])
    assert ("use", "rows") not in cut
    x = torch.arange(2 * 3 * 8 * 10.0).view(2, 3, 8, 10)
    assert torch.equal(loop._used(x, cut), x[:, :, 1:5, 2:8])
    loop.recorded = True
    recorded = loop.batch(index)
    assert torch.equal(loop._used(x, recorded), x[:, :, 1:5, 2:8])
    loop.window = None
    assert loop._used(x, loop.batch(index)) is x
    assert ("floating", name) not in loop_of(stage).batch(index)


def test_inputs_are_the_quantized_ones_but_for_what_is_dropped():
    stage = stage_of()
    index = torch.arange(4)
    for probability in (0.0, 0.3, 1.0):
        loop = loop_of(stage, probability=probability)
        (name,) = loop.unit.inputs
        mixed = loop.inputs(loop.batch(index))[name]
        quantized, floating = (s[name].read(0, 4) for s in (loop.data.quantized, loop.data.floating))
        apart = quantized != floating
        assert torch.equal(mixed[~apart], quantized[~apart])
        # lerp is not exact in its middle, here the mask is 0 or 1.
        from_quantized, from_float = mixed[apart] == quantized[apart], mixed[apart] == floating[apart]
        assert bool((from_quantized | from_float).all())
        assert float(from_quantized.float().mean()) == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize("learned", [True, False])
def test_deferred_inputs_are_quantized_where_they_enter(learned):
    stage = stage_of()
    unit = stage.plan.units[0]
    own = data_of(stage, unit)
    data = replace(own, quantized=own.floating, deferred=frozenset({"input"}))
    loop = loop_of(stage, data=data)
    grid = stage.simulation.activations["input"]
    if learned:
        loop.trainable.start["input"] = grid
        loop.trainable.zero_point["input"] = float(grid.zero_point)
        loop.trainable.log_ratio["input"] = torch.tensor(math.log(2.0))
    x = own.floating["input"].read(0, 4)
    found = loop.inputs(loop.batch(torch.arange(4)))["input"]
    torch.testing.assert_close(found, fake_quantize(x, replace(grid, scale=grid.scale * (2.0 if learned else 1.0))))
    loop.quantize_activations = False
    assert torch.equal(loop.inputs(loop.batch(torch.arange(4)))["input"], x)


# --- losses ------------------------------------------------------------------------------------------------------


def test_loss_of_the_loop_at_settled_roundings_is_the_loss_that_units_are_judged_by():
    stage = stage_of(residual)
    unit = stage.plan.units[0]
    loop = loop_of(stage, unit, weights=dict.fromkeys(unit.outputs, 3.0))
    with torch.no_grad():
        for rounding in loop.trainable.rounding.values():
            rounding.V.copy_(torch.where(rounding.V >= 0, 9.0, -9.0))
    index = torch.tensor([0, 2, 3])
    options = {"quantize_activations": True, "knees": loop.knees, "weights": loop.weights}
    judged = [
        evaluate_unit(unit, loop.steps, stage.simulation, loop.data, index, batch_size=size, **options)
        for size in (1, 2, 3, 64)
    ]
    assert judged == pytest.approx([judged[0]] * 4, rel=1e-5)
    assert float(loop.loss(loop.batch(index)).detach()) == pytest.approx(judged[0], rel=1e-4)
    outputs = stage.simulation.run(
        {n: s.read(0, 99)[index] for n, s in loop.data.quantized.items()}, loop.steps, keep=unit.outputs
    )
    by_hand = sum(
        3.0 * float((outputs[n] - loop.data.targets[n].read(0, 99)[index]).square().sum(1).mean()) for n in unit.outputs
    )
    assert judged[0] == pytest.approx(by_hand, rel=1e-5)


def test_huber_loss_is_the_square_below_the_knee_and_a_line_beyond():
    target = torch.zeros(1, 2, 1, 2)
    output = torch.tensor([0.5, -1.0, 3.0, -5.0]).view(1, 2, 1, 2)
    # e^2 below 2 and 2 * 2 |e| - 4 above, summed over channels, the mean over two places.
    assert float(reconstruction_loss(output, target, knee=2.0)) == pytest.approx((0.25 + 1 + 8 + 16) / 2)
    assert float(reconstruction_loss(output, target)) == pytest.approx((0.25 + 1 + 9 + 25) / 2)


def test_loss_of_another_power_and_of_the_fisher_information():
    target = torch.zeros(2, 3)
    output = torch.tensor([[1.0, -2.0, 0.5], [0.0, 4.0, -1.0]])
    expected = (1 + 2**2.4 + 0.5**2.4 + 4**2.4 + 1) / 2
    assert float(reconstruction_loss(output, target, power=2.4)) == pytest.approx(expected, rel=1e-6)
    gradient = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.5, 0.0]])
    expected = (1 + (2 * 2) ** 2 + (0.5 * 3) ** 2 + (4 * 1.5) ** 2 + 1) / 2
    assert float(reconstruction_loss(output, target, 1.0, 2.4, gradient)) == pytest.approx(expected)
    vector = torch.tensor([1.0, 3.0])
    assert float(reconstruction_loss(vector, torch.zeros(2))) == pytest.approx(5.0)


def test_knee_is_a_share_of_the_deviation_of_the_float_output():
    x = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    found = output_knees({"y": Store.of(x), "flat": Store.of(torch.full((4, 2), 2.0))}, 0.5, ALONE)
    assert found["y"] == pytest.approx(0.5 * float(x.std(unbiased=False)), rel=1e-5)
    assert found["flat"] == pytest.approx(0.5e-6)
    assert output_knees({"y": Store.of(x)}, None, ALONE) == {"y": None}


def test_outputs_of_a_unit_weigh_as_if_they_had_one_spread():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 8, generator=generator)
    x = (x - x.mean()) / x.std(unbiased=False)
    stores = {"small": Store.of(0.5 * x + 7), "large": Store.of(8 * x)}
    # Geometric mean of the deviations: 2.
    found = output_weights(stores, 2.0, ALONE)
    assert found["small"] == pytest.approx((2 / 0.5) ** 2, rel=1e-4)
    assert found["large"] == pytest.approx((2 / 8) ** 2, rel=1e-4)
    assert output_weights(stores, 1.0, ALONE)["large"] == pytest.approx(2 / 8, rel=1e-4)
    assert output_weights({"large": stores["large"]}, 2.0, ALONE) == {"large": 1.0}
    flat = output_weights({"zero": Store.of(torch.zeros(4, 2)), "small": stores["small"]}, 2.0, ALONE)
    assert flat["zero"] == pytest.approx(0.5, rel=1e-4)  # counts as of spread 1: the mean is sqrt(0.5)


# --- rates and Adam ----------------------------------------------------------------------------------------------


def test_published_rates_and_their_growth():
    assert (default_rates(20000).rounding, default_rates(20000).scale) == (1e-3, 1e-3)
    # The power 0.8 of 20,000 over 2,000 iterations.
    assert default_rates(2000).rounding == pytest.approx(1e-3 * 10**0.8)
    assert default_rates(2000).scale == pytest.approx(1e-3 * 10**0.8)
    assert default_rates(150).rounding == pytest.approx(1e-3 * (20000 / 150) ** 0.8)
    assert default_rates(151).rounding < default_rates(150).rounding == default_rates(149).rounding


class Quadratic:
    """A loop whose loss is the sum of squares of two variables, whatever the batch; it notes what it was given."""

    def __init__(self, stage: Stage) -> None:
        unit = stage.plan.units[0]
        self.simulation, self.data = stage.simulation, data_of(stage, unit)
        self.masks = Masks(1.0, CPU, torch.Generator())
        self.x, self.y = (torch.tensor([2.0, -1.0], requires_grad=True) for _ in range(2))
        self.recorded, self.beta, self.window = True, None, None
        self.betas, self.indices = [], []

    def batch(self, index):
        self.indices.append(index)
        return {}

    def loss(self, batch):
        self.betas.append(self.beta)
        return (self.x.square() + self.y.square()).sum()


def adam(rates: list[float], start: list[float]) -> torch.Tensor:
    """Adam (Kingma & Ba 2015, algorithm 1) on the sum of squares, in float64."""
    x = torch.tensor(start, dtype=torch.float64)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, rate in enumerate(rates, 1):
        g = 2 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return x.float()


def test_rates_stay_or_fall_to_0_along_a_cosine():
    loop = Quadratic(stage_of())
    told = []
    groups = [Group([loop.x], 0.1, decays=False), Group([loop.y], 0.2, decays=True)]
    iters, generator = 25, torch.Generator().manual_seed(0)
    schedule = BetaSchedule(iters)
    learn(loop, groups, None, iters, 3, generator, schedule, ALONE, lambda step, loss: told.append((step, loss)))
    torch.testing.assert_close(loop.x.detach(), adam([0.1] * iters, [2.0, -1.0]), rtol=1e-4, atol=1e-4)
    rates = [0.2 * 0.5 * (1 + math.cos(math.pi * t / iters)) for t in range(iters)]
    torch.testing.assert_close(loop.y.detach(), adam(rates, [2.0, -1.0]), rtol=1e-4, atol=1e-4)
    assert loop.x.grad is None
    assert loop.betas == [schedule(step) for step in range(iters)]
    assert loop.betas[4] is None
    assert loop.betas[5] == 20
    # Batches are drawn with replacement from the training samples alone.
    drawn = torch.stack(loop.indices)
    assert drawn.shape == (iters, 3)
    assert set(drawn.flatten().tolist()) == set(loop.data.training.tolist())
    # Every tenth iteration is reported, and the last one.
    assert [step for step, _ in told] == [10, 20, 25]
    assert told[-1][1] < told[0][1] < 10
    assert loop.recorded is False


def test_gradient_of_the_whole_pass_is_that_of_plain_autograd():
    """Soft weights, biases, fake quantization and loss, the fused passes and all, against the formulas by hand."""
    stage = stage_of(single)
    loop = loop_of(stage)
    loop.rounding_weight, loop.beta = 0.05, 6.0
    index = torch.arange(4)
    (name,), (output,) = loop.unit.inputs, loop.unit.outputs
    loop.loss(loop.batch(index)).backward()
    trainable, rounding = loop.trainable, loop.trainable.rounding["conv"]
    found = [rounding.V.grad, trainable.log_gain["conv"].grad, trainable.shift["conv"].grad]
    found += [trainable.log_ratio[n].grad for n in trainable.start]
    V = rounding.V.detach().clone().requires_grad_()
    gain, shift, ratio = (
        t.detach().clone().requires_grad_()
        for t in (trainable.log_gain["conv"], trainable.shift["conv"], next(iter(trainable.log_ratio.values())))
    )
    step = stage.network.step("conv")
    own, bias = step.module.weight.detach(), step.module.bias.detach()
    grid, (made,) = stage.simulation.weights["conv"].grid, trainable.start.values()
    scale, zero = grid.along(4)

    def straight(x: torch.Tensor) -> torch.Tensor:
        return x + (torch.round(x) - x).detach()

    h = (torch.sigmoid(V) * 1.2 - 0.1).clamp(0, 1)
    weight = scale * ((torch.floor(own / scale) + h + zero).clamp(0, grid.qmax) - zero) * gain.exp().view(-1, 1, 1, 1)
    moved = bias + shift * bias.abs().mean()
    unit = stage.simulation.activations[name].scale * grid.scale
    moved = moved + (torch.round(moved / unit) * unit - moved).detach()
    y = torch.nn.functional.conv2d(loop.data.quantized[name].read(0, 4), weight, moved, padding=1).relu()
    s = made.scale * ratio.exp()
    y = (straight((y / s).clamp(-made.zero_point, made.qmax - made.zero_point))) * s
    loss = (y - loop.data.targets[output].read(0, 4)).square().sum(1).mean()
    loss = loss + 0.05 * (1 - (2 * h - 1).abs() ** 6.0).sum()
    loss.backward()
    for own_gradient, plain in zip(found, (V.grad, gain.grad, shift.grad, ratio.grad), strict=True):
        torch.testing.assert_close(own_gradient, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


def test_masks_of_a_large_tensor_come_from_a_bank_twice_as_large_that_is_renewed():
    masks = Masks(0.5, CPU, torch.Generator().manual_seed(0))
    like = torch.zeros(100)
    masks.draw(like)
    assert masks.bank.numel() == 200
    first = masks.bank
    for _ in range(255):
        masks.draw(like)
    assert masks.bank is first
    masks.draw(like)
    assert masks.bank is not first
    masks.draw(torch.zeros(101))
    assert masks.bank.numel() == 202
    masks.draw(torch.zeros(5))
    assert masks.bank.numel() == 202


def test_masks_begin_anywhere_in_the_bank():
    masks = Masks(0.5, CPU, torch.Generator().manual_seed(0))
    masks.draw(torch.zeros(2))
    masks.bank = torch.arange(4.0)
    found = {tuple(masks.draw(torch.zeros(2)).tolist()) for _ in range(60)}
    assert found == {(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)}


def test_masks_lie_in_memory_as_what_they_mask():
    masks = Masks(0.5, CPU, torch.Generator().manual_seed(0))
    plain = torch.zeros(2, 3, 4, 5)
    last = plain.contiguous(memory_format=torch.channels_last)
    for like in (plain, last, plain[0], plain.flatten(1)):
        mask = masks.draw(like)
        assert (mask.shape, mask.stride()) == (like.shape, like.stride())


def test_without_being_told_errors_are_squared_and_roundings_are_free():
    assert (Judge.power, Loop.power, Loop.rounding_weight, Loop.beta) == (2.0, 2.0, 0.0, None)


def test_loss_of_one_sample_is_that_sample_alone():
    stage = stage_of(single)
    unit = stage.plan.units[0]
    data = data_of(stage, unit)
    options = {"quantize_activations": True, "batch_size": 8, "knees": {"output": None}, "weights": {"output": 1.0}}
    steps = stage.network.part(unit.nodes)
    alone = [evaluate_unit(unit, steps, stage.simulation, data, torch.tensor([i]), **options) for i in range(3)]
    together = evaluate_unit(unit, steps, stage.simulation, data, torch.arange(3), **options)
    assert sum(alone) / 3 == pytest.approx(together, rel=1e-5)

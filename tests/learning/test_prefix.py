"""The quantized prefix: what units read, the gradients at their outputs, and what is forgotten."""

from __future__ import annotations

import pytest
import torch
from helpers.learned import prefix_of, small, tiny
from helpers.stages import simulated, tensors

from mrecg_onnx.measures import sqnr_db


def test_second_phase_reads_what_the_float_network_makes():
    stage = simulated(small(), tensors(small(), 12), wbits=2, abits=4)
    prefix = prefix_of(stage, float_inputs=True)
    wanted = stage.network.run(stage.data, keep=[n for u in stage.plan.units for n in u.inputs])
    for unit in stage.plan.units:
        targets = prefix.targets(unit)
        data = prefix.data(unit, targets, torch.arange(12), torch.arange(0))
        for name in unit.inputs:
            assert torch.allclose(
                data.quantized[name].read(0, 12), wanted[name], atol=2e-3 * float(wanted[name].abs().max())
            )
        prefix.advance(unit, targets)


def test_gradient_at_the_output_is_that_of_the_divergence():
    stage = simulated(small(), tensors(small(), 12), wbits=2, abits=4)
    prefix = prefix_of(stage)
    for unit in stage.plan.units:
        targets = prefix.targets(unit)
        found = prefix.gradients(unit, targets)
        assert found.keys() == set(unit.outputs)
        assert all(tuple(found[n].shape) == tuple(targets[n].shape) for n in found)
        assert all(float(store.read(0, 12).max()) > 0 for store in found.values())
        prefix.advance(unit, targets)
    quantized = stage.simulation.run(stage.data)["output"].softmax(1)
    expected = (quantized - stage.network.run(stage.data)["output"].softmax(1)).abs()  # of each image alone
    assert torch.allclose(found["output"].read(0, 12), expected, atol=2e-3)


@pytest.mark.parametrize("quantize_activations", [True, False])
def test_prefix_is_the_whole_network_run_to_there(quantize_activations):
    stage = simulated(tiny(), tensors(tiny(), 20), wbits=2, abits=4)
    units, grids = stage.plan.units, stage.simulation.activations
    prefix = prefix_of(stage, quantize_activations=quantize_activations)
    wanted = [n for unit in units[1:] for n in unit.inputs]
    floating = stage.network.run(stage.data, keep=wanted)
    whole = stage.simulation.run(stage.data, keep=wanted, quantize_activations=quantize_activations)
    final = stage.simulation.run(stage.data, quantize_activations=quantize_activations)["output"]
    for unit in units:
        for name in unit.inputs:
            if name in whole:
                exact = quantize_activations and name in grids
                # Codes are kept without loss, floats with eleven bits.
                assert sqnr_db(whole[name].numpy(), prefix.quantized[name].read(0, 20).numpy()) > (110 if exact else 60)
                assert sqnr_db(floating[name].numpy(), prefix.floating[name].read(0, 20).numpy()) > 60
        targets = prefix.targets(unit)
        if unit is units[-1]:
            wanted_output = stage.network.run(stage.data)["output"].numpy()
            assert sqnr_db(wanted_output, targets["output"].read(0, 20).numpy()) > 60
            made = stage.simulation.run(
                {n: prefix.quantized[n].read(0, 20) for n in unit.inputs},
                stage.network.part(unit.nodes),
                keep=unit.outputs,
                quantize_activations=quantize_activations,
            )
            assert sqnr_db(final.numpy(), made["output"].numpy()) > (90 if quantize_activations else 60)
        prefix.advance(unit, targets)
        # What no later unit reads is forgotten.
        later = {n for u in units[units.index(unit) + 1 :] for n in u.inputs}
        assert set(prefix.quantized) == set(prefix.floating) <= later

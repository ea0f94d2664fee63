"""Layers as matrices: rows and answers, and the moments of both."""

from __future__ import annotations

import pytest
import torch
from helpers.matrices import LAYERS, equations_of, normal

from mrecg_onnx.converters.ops.weighted import OnnxConv, OnnxMatMulConst
from mrecg_onnx.learning.responses import ROWS, layout_of
from mrecg_onnx.machine.parallel import Workers


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrix_are_the_layers_answers(name):
    module, x, _ = LAYERS[name]
    layout = layout_of(module)
    generator = torch.Generator().manual_seed(0)
    got = layout.rows(x, layout.draw(x, generator)) @ layout.matrix(module.weight).transpose(1, 2)
    whole = module.compute(x, module.weight, None)
    if name == "from the left":
        whole = whole.transpose(-1, -2)
    # Positions are drawn in random order: compare each output's values as a sorted list.
    channels = got.transpose(1, 2).reshape(-1, got.shape[1])
    expected = whole.movedim(1 if whole.dim() > 2 and "MatMul" not in type(module).__name__ else -1, 0).flatten(1)
    torch.testing.assert_close(channels.sort(1)[0], expected.sort(1)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_matrices_turn_back_into_weights(name):
    module, _, _ = LAYERS[name]
    layout = layout_of(module)
    assert torch.equal(layout.weight(layout.matrix(module.weight)), module.weight)


def test_a_stack_of_matrices_is_no_matrix():
    assert layout_of(OnnxMatMulConst(normal(3, 8, 5))) is None


def test_positions_of_large_maps_are_a_sample():
    module, x = OnnxConv(normal(2, 1, 3, 3)), normal(2, 1, 40, 40)
    layout = layout_of(module)
    positions = layout.draw(x, torch.Generator().manual_seed(0))
    assert len(positions) == ROWS == len(set(positions.tolist()))
    assert layout.rows(x, positions).shape == (1, 2 * ROWS, 9)


def test_the_error_told_from_moments_is_the_error_of_the_responses():
    module, x, _ = LAYERS["grouped"]
    noisy, other = x + 0.1 * normal(*x.shape, seed=1), module.weight + 0.1 * normal(*module.weight.shape, seed=2)
    found = equations_of(module, noisy, x).error(layout_of(module).matrix(other))
    answers = module.compute(x, module.weight, None) - module.compute(noisy, other, None)
    expected = answers.square().mean((0, 2, 3)).view(2, 3).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    centred = equations_of(module, noisy, x).centred().error(layout_of(module).matrix(other))
    torch.testing.assert_close(centred.float(), answers.var((0, 2, 3), correction=0).view(2, 3), rtol=1e-4, atol=1e-6)


def test_moments_of_several_processes_are_averaged():
    class Doubling(Workers):
        def mean_(self, tensors) -> None:
            for tensor in tensors:
                tensor.mul_(2)

    module, x, _ = LAYERS["plain"]
    torch.testing.assert_close(equations_of(module, x, x, Doubling()).gram, equations_of(module, x, x).gram)

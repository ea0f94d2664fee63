"""A network run part by part gives what it gives as a whole, and holds nothing that nobody reads any more."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import PATTERNS
from helpers.stages import network_of, tensors

from mrecg_onnx.network import advance, read_behind


@pytest.mark.parametrize("pattern", ["residual", "two_inputs", "sigmoid_gate", "depthwise"])
def test_steps_one_by_one_make_the_output_and_keep_what_is_still_read(pattern):
    model = PATTERNS[pattern]()
    network, data = network_of(model), tensors(model, 4)
    expected, live = network.run(data), dict(data)
    for i, step in enumerate(network.steps):
        rest = network.steps[i + 1 :]
        live = advance(network, live, step, rest)
        made = {name for done in network.steps[: i + 1] for name in done.outputs} | set(data)
        assert set(live) == made & read_behind(network, rest)
        assert all(torch.equal(network.run(live, rest)[name], x) for name, x in expected.items())
    assert set(live) == set(network.outputs)


def test_what_is_read_behind_the_last_step_are_the_outputs():
    network = network_of(PATTERNS["residual"]())
    assert read_behind(network, []) == set(network.outputs)
    assert read_behind(network, network.steps) >= {*network.inputs, *network.outputs}

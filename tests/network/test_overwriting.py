"""Relu and Clip write over what the layer in front made, where nobody else reads it."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import Graph
from helpers.rescalable import mobile
from helpers.stages import network_of, tensors


def forked():
    """A layer with two readers, one that ends in an output, and Clips and Relus behind all of them and behind an input."""
    g = Graph()
    x = g.relu(g.input(4))
    both = g.conv(x, 4, 4, "both")
    g.conv(both, 4, 4, "beside", output="beside")
    y = g.clip(both, "clip")
    z = g.relu(g.conv(y, 4, 4, "last", output="last"), "behind")
    g.conv(z, 4, 4, "end", output="end")
    return g.model("beside", "last", "end")


@pytest.mark.parametrize("model", [mobile, forked])
def test_values_are_those_of_every_step_alone(model):
    model = model()
    network, data = network_of(model), tensors(model, 3)
    before = {name: x.clone() for name, x in data.items()}
    with torch.no_grad():
        found = network.run(data)
        live = dict(data)
        for step in network.steps:  # whole, and nothing is forgotten
            live.update(network.run(live, [step], keep=step.outputs))
    assert all(torch.equal(found[name], live[name]) for name in network.outputs)
    assert all(torch.equal(data[name], before[name]) for name in data)
    with_gradients = network.run(data)
    assert all(torch.equal(found[name], with_gradients[name]) for name in network.outputs)


def test_what_is_kept_is_not_written_over():
    model = mobile()
    network, data = network_of(model), tensors(model, 3)
    names = [name for step in network.steps for name in step.outputs]
    with torch.no_grad():
        kept = network.run(data, keep=names)
        for step in network.steps:
            again = network.run(kept | data, [step], keep=step.outputs)
            assert all(torch.equal(again[name], kept[name]) for name in step.outputs), step.node


def test_a_value_that_a_hook_put_in_is_not_written_over():
    model = mobile()
    network, data = network_of(model), tensors(model, 3)
    made: dict[str, torch.Tensor] = {}

    def doubled(name: str, value: torch.Tensor) -> torch.Tensor:
        made[name] = value * 2
        return made[name]

    with torch.no_grad():
        network.run(data, activation=doubled)
    convolutions = [step.outputs[0] for step in network.steps if step.op == "Conv"]
    assert all((made[name] < 0).any() for name in convolutions)


def test_memory_is_saved():
    model = mobile()
    network, data = network_of(model), tensors(model, 3)
    places: dict[str, int] = {}

    def note(name: str, value: torch.Tensor) -> torch.Tensor:
        places[name] = value.data_ptr()
        return value

    with torch.no_grad():
        network.run(data, activation=note)
    clips = [step for step in network.steps if step.op == "Clip"]
    assert clips
    assert all(places[step.outputs[0]] == places[step.arguments[0]] for step in clips)

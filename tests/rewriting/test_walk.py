"""Trials that go on from a tensor: the same errors as those of the whole network, and few steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.rescalable import mobile
from helpers.stages import network_of, planned, tensors

from mrecg_onnx.measures import output_error
from mrecg_onnx.quantizers import fake_quantize
from mrecg_onnx.rewriting import choose_scales, equalization, find_streams
from mrecg_onnx.rewriting.channel_samples import ChannelSample
from mrecg_onnx.rewriting.equalization import IMAGES
from mrecg_onnx.rewriting.walk import Walk


def doubled(name: str):
    return lambda tensor, value: value * 2 if tensor == name else value


def test_errors_are_those_of_the_whole_network():
    model = mobile()
    network, data = network_of(model), tensors(model, 24, 1)
    walk = Walk(network, data, IMAGES)
    walk.look(lambda _, value: value)
    # Of 16 images in any order the mean error is the same.
    few = {name: x[:IMAGES] for name, x in data.items()}
    reference = network.run(few)
    for step in network.steps[:-1]:
        name = step.outputs[0]
        one = walk.contender(name, walk.start([name]), doubled(name))
        expected = output_error(network.run(few, activation=doubled(name)), reference)
        assert np.sqrt(one.errors(3).mean()) == pytest.approx(expected, rel=1e-4), name


def test_the_walk_does_not_go_back():
    model = mobile()
    network = network_of(model)
    walk = Walk(network, tensors(model, 16), IMAGES)
    walk.look(lambda _, value: value)
    late, early = (network.steps[i].outputs[0] for i in (6, 2))
    walk.contender("late", walk.start([late]), doubled(late)).errors(1)
    with pytest.raises(AssertionError, match="back"):
        walk.contender("early", walk.start([early]), doubled(early)).errors(1)


def test_slices_of_a_network_that_runs_at_its_own_batch_are_whole_batches():
    model = mobile()
    network, data = network_of(model), tensors(model, 15)
    network.run_at(3, data)
    walk = Walk(network, data, IMAGES)
    walk.look(lambda _, value: value)
    name = network.steps[3].outputs[0]
    one = walk.contender("one", walk.start([name]), doubled(name))
    assert [len(one.errors(k)) for k in (1, 2)] == [6, 12]
    expected = output_error(network.run(data, activation=doubled(name)), network.run(data))
    assert np.sqrt(one.errors(3).mean()) == pytest.approx(expected, rel=1e-4)


def counted(monkeypatch: pytest.MonkeyPatch, network) -> list[int]:
    """Images times steps that the network runs from now on, in the only entry of a list."""
    count, made = [0], network._made

    def counting(step, arguments, call):
        count[0] += max(len(a) for a in arguments if a is not None and a.dim())
        return made(step, arguments, call)

    monkeypatch.setattr(network, "_made", counting)
    return count


def test_streams_without_an_error_are_left_after_a_part_of_what_whole_runs_take(monkeypatch):
    monkeypatch.setattr(equalization, "MIN_ERROR", 0.5)
    model = mobile()
    graph, plan = planned(model, wbits=8, abits=8)
    network, streams = network_of(graph), find_streams(graph)
    count = counted(monkeypatch, network)
    found = choose_scales(network, streams, plan.activations, tensors(model, IMAGES))
    assert len(found) == len(streams) > 3
    assert not any(entry.alpha for entry in found)
    whole = len(network.steps) * IMAGES  # one run of the network
    # A look at all tensors, a walk, and four images of what is behind each stream; whole runs take two norms of each alone.
    assert count[0] <= (2 + len(found) / 4) * whole


def test_decisions_are_those_of_whole_runs():
    model = mobile(3)
    graph, plan = planned(model, wbits=4, abits=4, first_last_bits=4)
    network, data = network_of(graph), tensors(model, IMAGES, 7)
    reference, bits = network.run(data), {p.name: p.bits for p in plan.activations}
    for entry in choose_scales(network, find_streams(graph), plan.activations, data):
        hooked = [n for n in entry.stream.tensors if n in bits]
        values = network.run(data, keep=hooked)
        errors = []
        for scale in (torch.ones(entry.stream.channels), torch.tensor(entry.scale)):
            each = scale.view(1, -1, 1, 1)
            tried = []
            for p in (2.4, 1.5):
                grids = {}
                for name, value in values.items():
                    sample = ChannelSample(IMAGES)
                    sample.add(value)
                    (grids[name],) = sample.grids(bits[name], [p], scale)

                def rounding(name, value, grids=grids, each=each):
                    return fake_quantize(value / each, grids[name]) * each if name in grids else value

                tried.append(output_error(network.run(data, activation=rounding), reference))
            errors.append(min(tried))
        assert errors[1] <= errors[0] * (0.98 if entry.alpha else 1.0)

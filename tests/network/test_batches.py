"""How many images go forward at a time, and in which batches."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import conv_relu
from helpers.stages import network_of, simulated, tensors

from mrecg_onnx.network import WHOLE, batches, forward_batches, forward_size, images_at_once, made_shapes, whole_batches
from mrecg_onnx.network.batches import FORWARD_ELEMENTS, FORWARD_ELEMENTS_CUDA, WHOLE_ELEMENTS

CPU = torch.device("cpu")


def test_no_sample_is_left_out_of_many():
    x = torch.arange(150.0).view(150, 1)
    assert sum(len(batch["x"]) for batch in forward_batches({"x": x}, 64, CPU)) == 150
    network = simulated(conv_relu()).network
    assert sum(len(batch["x"]) for batch in whole_batches({"x": x}, 64, network)) == 150


def test_slices_hold_all_samples_in_order():
    x = torch.arange(10.0).view(10, 1)
    parts = [batch["x"] for batch in forward_batches({"x": x}, 4, CPU)]
    assert [len(p) for p in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts), x)
    parts = [batch["x"] for batch in forward_batches({"x": x}, 4, CPU, limit=5)]
    assert [len(p) for p in parts] == [4, 1]
    assert torch.equal(torch.cat(parts), x[:5])


@pytest.mark.parametrize(("batch", "size", "lengths"), [(None, 4, [4, 3]), (3, 4, [6, 3]), (3, 2, [3, 3, 3])])
def test_slices_of_a_network_with_a_batch_of_its_own_are_whole_batches(batch, size, lengths):
    network = simulated(conv_relu()).network
    network.batch = batch
    x = torch.arange(7.0).view(7, 1)
    parts = [b["x"] for b in whole_batches({"x": x}, size, network)]
    assert [len(p) for p in parts] == lengths
    found = torch.cat(parts)
    assert torch.equal(found[:7], x)
    assert (found[7:] == 6.0).all()  # the last image fills the last batch
    limited = torch.cat([b["x"] for b in whole_batches({"x": x}, size, network, limit=4)])
    assert limited[:4].flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert len(limited) == (4 if batch is None else 6)


def test_many_small_images_run_together_and_one_at_least_of_large_ones():
    assert (FORWARD_ELEMENTS, FORWARD_ELEMENTS_CUDA) == (2**20, 2**26)
    assert forward_size([(1, 2, 4), (1,)], CPU) == 256
    assert forward_size([], CPU) == 256
    assert forward_size([(1, 3), (1, 4, 256, 256), ()], CPU) == 4
    assert forward_size([(1, 4, 512, 512)], torch.device("cuda")) == 64
    assert forward_size([(2**20 // 3,)], CPU) == 3
    assert forward_size([(2**20 // 3 + 1,)], CPU) == 2
    assert forward_size([(1, 4, 512, 512)], CPU, elements=2**22) == 4
    assert forward_size([(2**23, 2)], CPU) == 1


def test_shapes_are_those_of_everything_that_is_made_of_one_image():
    stage = simulated(conv_relu())
    found = made_shapes(stage.network, stage.network.steps, {"input": stage.data["input"][:1]})
    sizes = {"conv_out": 16, "relu_out": 16, "conv2_out": 8, "output": 8}
    assert found == {name: (1, channels, 16, 16) for name, channels in sizes.items()}


def test_shapes_are_those_of_one_image_where_the_network_runs_at_its_own_batch():
    network, data = network_of(conv_relu()), tensors(conv_relu())
    network.run_at(4, data)
    found = made_shapes(network, network.steps, {"input": data["input"][:1]})
    assert {shape[0] for shape in found.values()} == {1}


def test_slices_are_in_one_piece():
    x = torch.randn(2, 6, 5, 4)[:, ::2].transpose(2, 3)
    (batch,) = forward_batches({"image": x, "rows": torch.randn(6, 2).t()}, 8, CPU)
    assert torch.equal(batch["image"], x)
    assert batch["image"].is_contiguous() or batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["rows"].is_contiguous()


def test_a_whole_network_runs_on_as_many_images_as_its_largest_tensor_leaves_room_for():
    model = conv_relu()
    network, data = network_of(model), tensors(model, 20)
    most = max(x[0].numel() for x in network.run(data, keep=[n for s in network.steps for n in s.outputs]).values())
    most = max(most, *(x[0].numel() for x in data.values()))
    assert images_at_once(network, data) == min(WHOLE, WHOLE_ELEMENTS // most)
    assert images_at_once(network, data, 5) == 5
    network.batch = 7
    assert images_at_once(network, data, 5) == 7


def test_large_images_run_one_by_one(monkeypatch):
    model = conv_relu()
    network, data = network_of(model), tensors(model, 20)
    monkeypatch.setattr(batches, "WHOLE_ELEMENTS", 1)
    assert images_at_once(network, data) == 1

"""1x1 convolutions on one thread: the same values and gradients as torch's own, with few images and many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mrecg_onnx.converters.ops import weighted
from mrecg_onnx.converters.ops.weighted import OnnxConv


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("images", [1, 2, 15, 16])
@pytest.mark.parametrize(("groups", "stride", "bias"), [(1, 1, True), (1, 2, False), (4, 1, True)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_are_those_of_torch(images, groups, stride, bias, layout):
    torch.manual_seed(0)
    weight, shift = torch.randn(12, 8 // groups, 1, 1), torch.randn(12) if bias else None
    x = torch.randn(images, 8, 9, 7).contiguous(memory_format=layout)
    module = OnnxConv(weight, shift, stride=[stride] * 2, groups=groups)
    torch.testing.assert_close(module(x), F.conv2d(x, weight, shift, stride, 0, 1, groups))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
def test_only_few_images_without_gradients_go_another_way(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda x, *_: taken.append(len(x)))
    module, x = OnnxConv(torch.randn(4, 3, 1, 1)), torch.randn(20, 3, 5, 5)
    for count in (1, 15, 16, 20):
        module(x[:count])
    module(x[:2].double().float().requires_grad_())
    OnnxConv(torch.randn(4, 3, 3, 3))(x[:2])
    assert taken == [1, 15]
    torch.set_num_threads(2)
    module(x[:2])
    assert taken == [1, 15]
    with torch.no_grad():
        torch.set_num_threads(1)
        module(x[:2].requires_grad_())
    assert taken == [1, 15, 2]


def test_without_onednn_torch_chooses(monkeypatch):
    monkeypatch.setattr(weighted, "_ONEDNN", False)
    x = torch.randn(2, 3, 5, 5)
    module = OnnxConv(torch.randn(4, 3, 1, 1))
    assert torch.equal(module(x), F.conv2d(x, module.weight))

"""The reconstruction loss: exponents, gradients, and the Fisher-weighted loss in whole runs."""

from __future__ import annotations

import pytest
import torch
from helpers.learned import distance, results
from torch.nn import functional

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.settings import Settings


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("losses"))


def test_losses_of_exponents_and_gradients():
    output, target = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.zeros(2, 2)
    gradient = torch.tensor([[0.0, 1.0], [5.0, 0.5]])
    assert float(reconstruction_loss(output, target, power=2.4)) == pytest.approx((1 + 2**2.4 + 3**2.4) / 2)
    # (dz)^2 (|g| + 1)^2
    assert float(reconstruction_loss(output, target, None, 2.0, gradient)) == pytest.approx((1 + 4 * 4 + 9 * 2.25) / 2)
    assert float(reconstruction_loss(output, target, 0.1, 2.0, 0 * gradient)) == pytest.approx(14 / 2)


@pytest.mark.parametrize("method", ["brecq", "adaquant", "adaround"])
def test_fisher_goes_with_any_method_and_with_windows(quantized, method):
    result = quantized(method, loss="fisher", iters=40, window=8)
    assert distance(result.model) > distance(quantized("nearest").model)
    assert result.verification.warnings == ()


def test_unknown_loss_is_refused():
    with pytest.raises(SettingsError, match="loss is 'other'"):
        Settings(loss="other")


def test_loss_is_the_channel_sum_and_the_mean_over_the_rest():
    output, target = torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0)
    assert float(reconstruction_loss(output, target)) == pytest.approx(3 * 4.0)
    output = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    expected = (output**2).sum(1).mean()
    assert float(reconstruction_loss(output, torch.zeros(6, 10))) == pytest.approx(float(expected))


@pytest.mark.parametrize("knee", [None, 0.3, 2.0])
@pytest.mark.parametrize("last", [True, False])
def test_gradient_is_that_of_torch_in_the_layout_of_the_output(knee, last):
    layout = torch.channels_last if last else torch.contiguous_format
    output, target = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    output = output.contiguous(memory_format=layout).requires_grad_()
    ours = reconstruction_loss(output, target, knee)
    wanted = (
        functional.mse_loss(output, target, reduction="sum")
        if knee is None
        else 2 * functional.huber_loss(output, target, reduction="sum", delta=knee)
    ) / (3 * 5 * 6)
    torch.testing.assert_close(ours, wanted)
    (slope,), (known,) = (torch.autograd.grad(loss, [output]) for loss in (ours, wanted))
    torch.testing.assert_close(slope, known)
    assert slope.stride() == output.stride()

"""Momentum by layer: how far elements go, and that it is the same in one tensor as in many."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mrecg_onnx.learning.descent import Descent, Group
from mrecg_onnx.learning.momentum import LONGEST, LayerMomentum
from mrecg_onnx.machine import Workers

CPU = torch.device("cpu")


def moved(gradients: list[torch.Tensor], rate: float = 0.1) -> torch.Tensor:
    """Where a variable that began at zero is after these gradients."""
    x = torch.zeros_like(gradients[0], requires_grad=True)
    rule = LayerMomentum([{"params": [x], "lr": rate}])
    for gradient in gradients:
        x.grad = gradient.clone()
        rule.step()
    return x.detach()


def test_an_element_goes_as_far_as_its_gradient_is_larger_than_usual():
    gradient = torch.tensor([3.0, -1.0, 0.5, 0.0])
    usual = gradient.square().mean().sqrt()
    torch.testing.assert_close(moved([gradient]), -0.1 * gradient / usual)
    torch.testing.assert_close(moved([gradient] * 3), -0.3 * gradient / usual)


@given(st.floats(1e-6, 1e6))
def test_the_size_of_a_loss_does_not_matter(size):
    gradients = list(torch.randn(5, 20, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(moved([g * size for g in gradients]), moved(gradients), rtol=1e-3, atol=1e-5)


def test_noise_moves_less_than_what_keeps_its_direction():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200, 1000, generator=generator)
    noise[:, 0] = 1.0
    found = moved(list(noise), rate=0.01).abs()
    assert found[0] > 1.8
    assert found[1:].square().mean().sqrt() < 0.2


def test_no_gradient_no_step_and_one_that_stands_out_goes_no_farther_than_said():
    assert torch.equal(moved([torch.zeros(3)]), torch.zeros(3))
    alone = torch.zeros(10000)
    alone[7] = 1.0
    found = moved([alone], rate=0.1)
    assert found[7] == -0.1 * LONGEST
    assert found.count_nonzero() == 1


def test_groups_of_both_rules_follow_one_schedule():
    adam, layer = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    descent = Descent(
        [Group([adam], 0.1, decays=True), Group([layer], 0.1, decays=True, by_layer=True)], CPU, Workers()
    )

    def loss() -> torch.Tensor:
        return (adam + layer).sum()

    descent.schedule(1.0)
    descent.step([loss])
    assert torch.equal(adam, torch.ones(3))
    assert torch.equal(layer, torch.ones(3))
    descent.schedule(0.0)
    descent.step([loss])
    torch.testing.assert_close(adam.detach(), torch.full((3,), 0.9), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(layer.detach(), torch.full((3,), 0.9))


def test_after_a_restart_descent_is_as_new():
    gradients = list(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)))

    def course(restarted: bool) -> list[torch.Tensor]:
        variables = [torch.zeros(5, requires_grad=True) for _ in range(2)]
        groups = [Group([x], 0.1, decays=True, by_layer=i == 1) for i, x in enumerate(variables)]
        descent = Descent(groups, CPU, Workers())
        if restarted:
            for gradient in gradients[:3]:
                descent.step([lambda g=gradient: sum((x * g).sum() for x in variables)])
            descent.restart()
            with torch.no_grad():
                for x in variables:
                    x.zero_()
        for gradient in gradients[3:]:
            descent.step([lambda g=gradient: sum((x * g).sum() for x in variables)])
        return [x.detach() for x in variables]

    for a, b in zip(course(False), course(True), strict=True):
        torch.testing.assert_close(a, b)

"""The task loss: the divergence of class scores, else the relative error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrecg_onnx.measures.output_errors import OutputScales, output_sums
from mrecg_onnx.measures.task import task_loss


def test_task_loss_is_the_divergence_of_class_probabilities_else_the_relative_error():
    generator = torch.Generator().manual_seed(0)
    scores, other = (torch.randn(6, 5, generator=generator) for _ in range(2))
    p, q = scores.softmax(1), other.softmax(1)
    assert float(task_loss({"o": other}, {"o": scores})) == pytest.approx(
        float((p * (p / q).log()).sum(1).mean()), rel=1e-5
    )
    assert float(task_loss({"o": scores}, {"o": scores})) == pytest.approx(0, abs=1e-7)
    maps = {"m": torch.randn(2, 3, 4, 4, generator=generator)}
    expected = 0.01 * float(maps["m"].square().mean() / maps["m"].var(correction=0))
    assert float(task_loss({"m": 1.1 * maps["m"]}, maps)) == pytest.approx(expected, rel=1e-4)


def test_task_loss_is_the_divergence_of_class_scores_and_else_the_relative_error():
    reference = {"scores": torch.tensor([[0.0, 0.0], [0.0, 0.0]]), "index": torch.tensor([0, 0])}
    outputs = {"scores": torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]])), "index": torch.tensor([1, 0])}
    # Half of KL(1/2, 1/2 || 1/4, 3/4): the other row has none.
    expected = 0.5 * (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert float(task_loss(outputs, reference)) == pytest.approx(expected, rel=1e-5)
    images = {"image": torch.tensor([[0.0, 2.0, 4.0]])[None]}  # variance 8/3
    assert float(task_loss({"image": images["image"] + 1.0}, images)) == pytest.approx(3 / 8)
    # Beside another output scores are an output like any other: neither decides alone.
    heads = {"scores": torch.tensor([[1.0, -1.0]]), "boxes": torch.tensor([[0.0, 400.0]])}
    moved = {"scores": heads["scores"] + 0.2, "boxes": heads["boxes"] + 20.0}
    assert float(task_loss(moved, heads)) == pytest.approx((0.04 + 0.01) / 2)
    for exact in (reference, images, heads):
        assert float(task_loss(exact, exact)) == pytest.approx(0.0, abs=1e-7)


def test_task_loss_has_gradients():
    scores = torch.randn(4, 5, requires_grad=True)
    task_loss({"y": scores}, {"y": torch.randn(4, 5)}).backward()
    assert bool(scores.grad.abs().sum() > 0)


def test_a_reconstruction_is_not_judged_as_class_scores() -> None:
    inputs, rebuilt = {"x": torch.randn(4, 3, 2, 2)}, {"y": torch.randn(4, 12)}
    scales = OutputScales.of(output_sums(rebuilt, rebuilt), rebuilt, inputs)
    assert scales.scores is None
    moved = {"y": rebuilt["y"] + 0.1}  # a shift of all scores is none to a softmax
    assert float(task_loss(moved, rebuilt, scales)) == pytest.approx(
        0.01 / float(rebuilt["y"].var(correction=0)), rel=1e-4
    )
    assert OutputScales.of(output_sums(rebuilt, rebuilt), rebuilt, {"x": torch.randn(4, 3, 8, 8)}).scores == "y"

"""Output errors: each output relative to its own variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrecg_onnx.measures.output_errors import image_errors, output_error, output_sums


def test_each_output_counts_relative_to_its_own_variance():
    scores, boxes = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0.0, 400.0])
    reference = {"scores": scores, "boxes": boxes}
    # Variances 1 and 200^2: mean squared errors of .04 and 20^2 are .04 and .01.
    outputs = {"scores": scores + 0.2, "boxes": boxes + 20.0}
    assert output_error(outputs, reference) == pytest.approx(np.sqrt((0.04 + 0.01) / 2), rel=1e-5)
    assert output_error(reference, reference) == 0
    # Neither what is added to an output nor its unit of measure changes anything.
    moved, other = ({"scores": x["scores"] + 320, "boxes": x["boxes"] / 640} for x in (reference, outputs))
    assert output_error(other, moved) == pytest.approx(output_error(outputs, reference), rel=1e-3)


def test_constant_outputs_and_those_without_floats_have_an_error_too():
    constant = {"y": torch.full((8, 2), 4.0)}
    assert output_error({"y": torch.full((8, 2), 4.4)}, constant) == pytest.approx(0.1, rel=1e-4)
    assert output_error({"y": torch.full((8, 2), 0.1)}, {"y": torch.zeros(8, 2)}) == pytest.approx(0.1)
    assert output_error({"y": torch.zeros(0, 2)}, {"y": torch.zeros(0, 2)}) == 0
    classes, others = {"top": torch.tensor([0, 900, 3, 3])}, {"top": torch.tensor([0, 1, 3, 3])}
    assert output_error(others, classes) == pytest.approx(0.5)  # a quarter of the values differ, whatever their numbers
    both, wrong = classes | {"y": torch.tensor([1.0, -1.0])}, others | {"y": torch.tensor([1.1, -1.1])}
    assert output_error(wrong, both) == pytest.approx(0.1, rel=1e-4)  # floats decide where there are any


def test_errors_of_images_make_that_of_all():
    random = torch.Generator().manual_seed(0)
    reference = {n: torch.randn(6, *shape, generator=random) for n, shape in (("scores", (5,)), ("boxes", (3, 4)))}
    outputs = {n: x + torch.randn(x.shape, generator=random) for n, x in reference.items()} | {
        "none": torch.zeros(6, 0)
    }
    reference["none"] = torch.zeros(6, 0)
    signal = {n: s.signal or 1.0 for n, s in output_sums(reference, reference).items()}
    errors = image_errors(outputs, reference, signal)
    assert errors.shape == (6,)
    assert float(errors.mean().sqrt()) == pytest.approx(output_error(outputs, reference), rel=1e-6)
    first = {n: x[:1] for n, x in outputs.items()}
    assert image_errors(first, {n: x[:1] for n, x in reference.items()}, signal).tolist() == [float(errors[0])]
    classes = {"top": torch.tensor([[0], [9]])}
    assert image_errors({"top": torch.tensor([[0], [3]])}, classes, {}).tolist() == [0.0, 1.0]

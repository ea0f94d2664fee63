"""QDrop drops element by element, on a unit's input and behind every quantizer inside it (Wei et al. 2022, section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.learned import small
from helpers.stages import feeds

from mrecg_onnx.learning.loop import Loop
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers import fake_quantize
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def seen(tmp_path, monkeypatch) -> Callable[..., dict[str, list]]:
    """Inputs of all units and values behind all quantizers, as the first iteration of each unit has them."""
    found: dict[str, list] = {"inputs": [], "inside": []}
    inputs, activation = Loop.inputs, Loop.activation

    def spy_inputs(loop, batch):
        made = inputs(loop, batch)
        for name, x in made.items():
            sources = batch["quantized", name], batch.get(("floating", name))
            found["inputs"].append((name, x, *sources))
        return made

    def spy_activation(loop, name, value):
        made = activation(loop, name, value)
        if name in loop.trainable.start:
            grid = loop.trainable.start[name]
            found["inside"].append((name, made.detach(), fake_quantize(value.detach(), grid), value.detach()))
        return made

    monkeypatch.setattr(Loop, "inputs", spy_inputs)
    monkeypatch.setattr(Loop, "activation", spy_activation)
    np.savez(tmp_path / "calib.npz", **feeds(small(), 32))

    def run(**more):
        chosen = {
            "method": "qdrop",
            "wbits": 2,
            "abits": 2,
            "iters": 1,
            "equalize": "off",
            "window": 0,
            "held_out": 0.0,
        }
        quantize(small(), tmp_path / "calib.npz", Settings(**chosen | more))
        return found

    return run


@pytest.mark.parametrize("place", ["inputs", "inside"])
def test_half_of_the_elements_are_quantized_each_by_itself(seen, place):
    found = seen()[place]
    assert found
    for name, x, quantized, floating in found:
        from_quantized = torch.isclose(x, quantized, rtol=1e-5, atol=1e-6)
        from_float = torch.isclose(x, floating, rtol=1e-5, atol=1e-6)
        assert torch.all(from_quantized | from_float), name
        differ = ~torch.isclose(quantized, floating, rtol=1e-3, atol=1e-4)
        share = float(from_quantized[differ].float().mean())
        assert 0.4 < share < 0.6, (name, share)
        # Neighbours decide alone: of pairs along a row a quarter is quantized twice.
        if x.dim() == 4 and x.shape[-1] > 1:
            pairs = differ[..., 1:] & differ[..., :-1]
            both = (from_quantized[..., 1:] & from_quantized[..., :-1])[pairs]
            assert 0.15 < float(both.float().mean()) < 0.35, name


def test_every_quantizer_of_a_unit_drops_its_output_too(seen):
    names = {name for name, *_ in seen()["inside"]}
    assert {"stem_relu_out", "a1_relu_out", "b1_relu_out"} <= names


def test_brecq_drops_nothing(seen):
    found = seen(method="brecq")
    for _, x, quantized, _ in (*found["inputs"], *found["inside"]):
        assert torch.allclose(x, quantized, rtol=1e-5, atol=1e-6)

"""A GPU that runs out of memory: less is kept there, fewer images go at a time, that is said, and the result is the same."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import residual
from helpers.stages import feeds

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.learning import Group, loop, prefix
from mrecg_onnx.machine import ALONE, Pool, Store
from mrecg_onnx.network import Simulation
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers import BetaSchedule, Grid
from mrecg_onnx.settings import Settings

SETTINGS = Settings(
    method="brecq", wbits=2, iters=20, batch_size=8, threads=1, equalize="off", range="mse", range_samples=8
)
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relief")
    onnx.save(residual(blocks=1), folder / "model.onnx")
    np.savez(folder / "calib.npz", **feeds(residual(blocks=1), 24))
    return folder / "model.onnx", folder / "calib.npz"


@pytest.fixture(scope="module")
def whole(here):
    return quantize(*here, SETTINGS)


def full(most: int, name: str, owner, monkeypatch, where: list[int]) -> None:
    """Let ``owner.name`` fail on more than ``most`` images, as torch does on a GPU."""
    real = getattr(owner, name)

    def limited(self, batch, *more, **options):
        rows = len(next(iter(batch.values())))
        where.append(rows)
        if rows > most:
            raise torch.OutOfMemoryError(SAID)
        return real(self, batch, *more, **options)

    monkeypatch.setattr(owner, name, limited)


@pytest.mark.parametrize("most", [4, 3, 1])
def test_a_smaller_batch_is_used_and_said(here, whole, monkeypatch, caplog, most):
    seen: list[int] = []
    full(most, "loss", loop.Loop, monkeypatch, seen)
    found = quantize(*here, SETTINGS)
    assert max(rows for rows in seen if rows <= most) <= most
    first = found.units[0].name
    size = {4: 4, 3: 2, 1: 1}[most]
    told = [r.getMessage() for r in caplog.records if r.name.endswith("relief") and r.levelno == logging.WARNING]
    assert told[-1] == (f"unit '{first}': the GPU ran out of memory (CUDA out of memory); {size} images go at a time")
    assert len(told) == {4: 1, 2: 2, 1: 3}[size]  # said once: the units behind begin with what went
    for one, other in zip(found.units, whole.units, strict=True):
        assert one.iters == other.iters
        assert one.loss == pytest.approx(other.loss, rel=0.3)  # twenty steps at two bits: the last digit of a sum tells


def test_a_pass_forward_that_does_not_fit_goes_in_parts(here, whole, monkeypatch, caplog):
    seen: list[int] = []
    monkeypatch.setattr(prefix, "forward_size", lambda *_: 16)
    full(5, "run", Simulation, monkeypatch, seen)
    with pytest.raises(torch.OutOfMemoryError):  # not every pass is a unit's: what comes before has no parts
        quantize(*here, SETTINGS)
    assert max(seen) > 5


def test_one_image_that_does_not_fit_is_an_error(here, monkeypatch, caplog):
    full(0, "loss", loop.Loop, monkeypatch, [])
    with pytest.raises(DataError, match=r"unit '.*': the GPU ran out of memory \(CUDA out of memory\); free it"):
        quantize(*here, SETTINGS)


def test_parts_have_the_gradient_of_the_whole():
    def learned(parts: int) -> torch.Tensor:
        x = torch.tensor([2.0, -1.0], requires_grad=True)
        fake = SimpleNamespace(
            simulation=SimpleNamespace(network=SimpleNamespace(device=torch.device("cpu"))),
            masks=SimpleNamespace(local=(), restart=lambda: None),
            data=SimpleNamespace(training=torch.arange(10)),
            rounding_weight=0.7,
            batch=lambda index: {("images", "x"): index.float()},
        )

        class Pushed(torch.autograd.Function):
            """Adds to the gradient whatever the loss is, as the regularizer of a rounding does."""

            @staticmethod
            def forward(_, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(_, slope: torch.Tensor) -> torch.Tensor:
                return slope + fake.rounding_weight

        fake.loss = lambda batch: ((batch["images", "x"][:, None] * Pushed.apply(x)) ** 2).mean()
        generator = torch.Generator().manual_seed(0)
        learn = (generator, BetaSchedule(20), ALONE, None, parts)
        loop.learn(fake, [Group([x], 0.1, decays=True)], None, 20, 7, *learn)  # type: ignore[arg-type]
        assert fake.rounding_weight == pytest.approx(0.7)
        return x.detach()

    whole = learned(1)
    for parts in (2, 3, 7):
        assert torch.allclose(learned(parts), whole, atol=1e-5)


@pytest.mark.parametrize("grid", [None, Grid(torch.tensor(0.1), torch.tensor(3.0), 4)], ids=["floats", "codes"])
def test_a_store_that_is_moved_holds_the_same(grid):
    x = torch.randn(6, 3, 4, 4)
    store = Store.of(x, grid)
    before = store.read(0, 6)
    store.move()
    assert torch.equal(store.read(0, 6), before)
    assert not Pool().leave_device()  # nothing is on a GPU

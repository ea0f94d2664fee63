"""Activations between units: what is kept is given back, in whatever batches, from memory as from files."""

from __future__ import annotations

import errno
import gc
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import residual
from helpers.scarce import COMMAND_LINE, cache_nothing
from helpers.stages import feeds
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.learning import learner
from mrecg_onnx.machine import cache
from mrecg_onnx.machine.cache import Pool, Store, _free_in_group, default_memory
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.quantizers import Grid, fake_quantize, quantize_codes
from mrecg_onnx.settings import Settings

#: Half precision rounds to eleven bits.
HALF = 2.0**-11

quick = hypothesis_settings(max_examples=40, deadline=None)
shapes = st.integers(0, 3).flatmap(lambda rank: st.tuples(*[st.integers(1, 5)] * rank))
budgets = st.sampled_from([None, 0])


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def peaks(x: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each sample, shaped to broadcast over ``x``."""
    return x.reshape(len(x), -1).abs().amax(1).view(-1, *[1] * (x.dim() - 1))


def whole(store: Store) -> torch.Tensor:
    return store.read(0, len(store))


# --- what is kept ------------------------------------------------------------------------------------------------


@quick
@given(
    bits=st.integers(2, 8),
    data=st.data(),
    scale=st.floats(1e-6, 1e6),
    shape=shapes,
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
    budget=budgets,
)
def test_values_on_a_grid_come_back_to_the_last_bit(bits, data, scale, shape, count, seed, budget):
    zero_point = data.draw(st.integers(0, 2**bits - 1))
    grid = Grid(torch.tensor(scale, dtype=torch.float32), torch.tensor(float(zero_point)), bits)
    x = fake_quantize(normal((count, *shape), seed) * scale * 2**bits / 3, grid)
    store = Store.of(x, grid, Pool(budget))
    assert torch.equal(whole(store), x)
    assert store._block.tensor.dtype == torch.uint8


@quick
@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_other_values_come_back_rounded_to_the_grid(bits, seed):
    grid = Grid(torch.tensor(0.1), torch.tensor(1.0), bits)
    x = normal((4, 3, 5), seed) * 2**bits
    found = whole(Store.of(x, grid))
    assert torch.equal(found, (quantize_codes(x, grid) - 1) * torch.tensor(0.1))
    inside = (x > -0.15) & (x < 0.1 * (2**bits - 1.5))
    assert ((found - x).abs() <= 0.0501)[inside].all()


@quick
@given(
    exponents=st.lists(st.floats(-20, 20), min_size=1, max_size=6),
    shape=shapes,
    seed=st.integers(0, 99),
    budget=budgets,
)
def test_floats_keep_eleven_bits_whatever_their_size(exponents, shape, seed, budget):
    """Each sample has its own power of two: a large one beside it costs a small one nothing."""
    factors = torch.tensor([10.0**e for e in exponents]).view(-1, *[1] * len(shape))
    x = normal((len(exponents), *shape), seed) * factors
    found = whole(Store.of(x, pool=Pool(budget)))
    assert found.dtype == torch.float32
    assert found.shape == x.shape
    assert ((found - x).abs() <= HALF * peaks(x)).all()


def test_powers_of_two_and_their_neighbours():
    ends = torch.tensor([2.0**e for e in range(-60, 61)])
    below, above = torch.nextafter(ends, torch.tensor(0.0)), torch.nextafter(ends, torch.tensor(float("inf")))
    x = torch.cat([ends, below, above]).unsqueeze(1)
    found = whole(Store.of(x))
    assert ((found - x).abs() <= HALF * x).all()
    assert torch.equal(found[: len(ends)], ends.unsqueeze(1))


def test_halves_stay_finite_in_sums():
    """The mantissas leave room for the sum of two, of any sign."""
    store = Store.of(torch.full((2, 8), 3.0e38))
    assert torch.isfinite(store._block.tensor + store._block.tensor).all()
    assert torch.isfinite(whole(store)).all()


def test_zeros_stay_zeros_beside_anything():
    x = torch.zeros(3, 2, 4)
    x[1] = 1e20
    x[2, 0, 0] = 1e-20
    found = whole(Store.of(x))
    assert torch.equal(found == 0, x == 0)
    assert torch.equal(found[0], x[0])


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_stay_as_they_are(dtype, budget):
    x = (normal((5, 3, 2), 0) * 1000).to(dtype)
    if dtype == torch.int64:
        x[0, 0, 0], x[1, 0, 0] = 2**62 + 1, -(2**62) - 1
    store = Store.of(x, pool=Pool(budget))
    assert whole(store).dtype == dtype
    assert torch.equal(whole(store), x)
    assert store.moments == (0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats_come_back_as_float32(dtype):
    x = normal((4, 6), 1).to(dtype)
    found = whole(Store.of(x))
    assert found.dtype == torch.float32
    assert ((found - x.float()).abs() <= HALF * peaks(x)).all()


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2), (7, 3, 4, 5)])
@pytest.mark.parametrize("budget", [None, 0])
def test_any_rank(shape, budget):
    x = normal(shape, 0)
    store = Store.of(x, pool=Pool(budget))
    assert store.shape == shape[1:]
    assert len(store) == 7
    found = store.gather(torch.tensor([6, 0, 0]))
    assert found.shape == (3, *shape[1:])
    assert ((found - x[[6, 0, 0]]).abs() <= HALF * peaks(x[[6, 0, 0]])).all()


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("grid", [None, Grid(torch.tensor(0.05), torch.tensor(7.0), 4)])
@pytest.mark.parametrize("laid_out", [torch.contiguous_format, torch.channels_last])
def test_images_come_back_channels_last(budget, grid, laid_out):
    x = normal((4, 3, 6, 5), 0).contiguous(memory_format=laid_out)
    found = Store.of(x, grid, Pool(budget)).gather(torch.tensor([2, 1]))
    assert found.shape == (2, 3, 6, 5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@quick
@given(data=st.data(), seed=st.integers(0, 99), budget=budgets, on_grid=st.booleans())
def test_a_region_is_a_slice_of_the_whole(data, seed, budget, on_grid):
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    index = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8)))
    grid = Grid(torch.tensor(0.05), torch.tensor(7.0), 4) if on_grid else None
    store = Store.of(normal((6, 3, height, width), seed), grid, Pool(budget))
    found = store.gather(index, ((top, bottom), (left, right)))
    assert torch.equal(found, store.gather(index)[:, :, top:bottom, left:right])


@quick
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    shape=shapes,
    seed=st.integers(0, 99),
    budget=budgets,
    on_grid=st.booleans(),
)
def test_batches_of_any_size_make_the_same_store(sizes, shape, seed, budget, on_grid):
    grid = Grid(torch.tensor(0.05), torch.tensor(7.0), 4) if on_grid else None
    x = normal((sum(sizes), *shape), seed) * 30
    store, start = Store(Pool(budget), len(x), grid), 0
    for size in sizes:
        store.write(start, x[start : start + size])
        start += size
    at_once = Store.of(x, grid)
    assert torch.equal(whole(store), whole(at_once))
    assert store.moments == pytest.approx(at_once.moments)


@quick
@given(shape=shapes, count=st.integers(1, 6), seed=st.integers(0, 99), mean=st.floats(-1e3, 1e3))
def test_moments_are_those_of_what_was_written(shape, count, seed, mean):
    x = normal((count, *shape), seed) + mean
    values = x.numpy().astype(np.float64)
    number, total, squares = Store.of(x).moments
    assert number == values.size
    assert total == pytest.approx(values.sum(), rel=1e-9, abs=1e-9)
    assert squares == pytest.approx(np.square(values).sum(), rel=1e-9)


def test_moments_are_of_the_values_before_the_grid():
    grid = Grid(torch.tensor(1.0), torch.tensor(0.0), 2)
    assert Store.of(torch.tensor([[10.0, -2.0]]), grid).moments == pytest.approx((2, 8.0, 104.0))


def test_read_ends_with_the_samples():
    store = Store.of(torch.arange(10.0).view(5, 2))
    assert torch.equal(store.read(3, 99), torch.tensor([[6.0, 7.0], [8.0, 9.0]]))


@pytest.mark.parametrize(("first", "second"), [((2, 3, 4, 4), (2, 3, 4, 5)), ((2, 3), (2, 3, 1)), ((2, 8), (2, 9))])
def test_samples_of_two_shapes_are_refused_by_name(first, second):
    store = Store(Pool(), 4)
    store.write(0, torch.zeros(first))
    with pytest.raises(DataError, match=r"different shapes.*\(" + ", ".join(str(d) for d in second[1:])):
        store.write(2, torch.zeros(second))


# --- where it is kept --------------------------------------------------------------------------------------------


def test_budget_is_kept_and_the_rest_goes_to_files(tmp_path):
    pool = Pool(1000, folder=tmp_path)
    x = normal((10, 20), 0)  # 400 bytes as halves
    stores = [Store.of(x, pool=pool) for _ in range(5)]
    assert (pool.used, pool.spilled, pool.peak_spilled) == (800, 1200, 1200)
    assert all(torch.equal(whole(store), whole(stores[0])) for store in stores)
    small = Store.of(x[:, :5], pool=pool)  # what still fits does
    assert (pool.used, pool.spilled) == (900, 1200)
    del small
    gc.collect()
    assert (pool.used, pool.spilled) == (800, 1200)


def test_room_is_given_back_when_a_store_is_dropped(tmp_path):
    pool = Pool(400, folder=tmp_path)
    x = normal((10, 20), 0)
    first, second = Store.of(x, pool=pool), Store.of(x, pool=pool)
    assert (pool.used, pool.spilled) == (400, 400)
    del second
    gc.collect()
    assert (pool.used, pool.spilled, pool.peak_spilled) == (400, 0, 400)
    del first
    gc.collect()
    assert pool.used == 0
    third = Store.of(x, pool=pool)
    assert (pool.used, pool.spilled) == (400, 0)
    assert len(third) == 10


def test_what_was_gathered_outlives_the_store(tmp_path):
    pool = Pool(0, folder=tmp_path)
    x = torch.arange(12).view(4, 3)
    found = Store.of(x, pool=pool).gather(torch.tensor([1, 3]))
    gc.collect()
    assert pool.spilled == 0
    assert torch.equal(found, x[[1, 3]])


def test_files_have_no_name(tmp_path):
    pool = Pool(0, folder=tmp_path)
    store = Store.of(normal((10, 3, 8, 8), 0), pool=pool)
    assert pool.spilled == 10 * 3 * 8 * 8 * 2
    assert list(tmp_path.iterdir()) == []
    whole(store)
    assert list(tmp_path.iterdir()) == []


def test_files_go_where_tmpdir_says(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no_such_folder"))
    with pytest.raises(DataError, match="no_such_folder"):
        Store.of(torch.zeros(2, 2), pool=Pool(0))
    store = Store.of(torch.zeros(2, 2), pool=Pool(0, folder=tmp_path))
    assert len(store) == 2


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room on a disk")
def test_full_disk_is_said_before_the_work(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    pool = Pool(0, folder=tmp_path)
    with pytest.raises(DataError) as raised:
        Store.of(normal((10, 20), 0), pool=pool)
    assert str(tmp_path) in str(raised.value)
    assert "--memory" in str(raised.value)
    assert "TMPDIR" in str(raised.value)
    assert os.strerror(errno.ENOSPC) in str(raised.value)
    assert "\n" not in str(raised.value)
    del raised
    gc.collect()
    assert (pool.used, pool.spilled, pool.peak_spilled) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_default_memory_is_some_of_what_is_free():
    assert 0 < default_memory() < 2**50


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("1000", "max", 1000 - 300 + 100),  # what files are read through is no use of memory
        ("1000", "700", 700 - 300 + 100),  # the tightest of the groups around
        ("200", "max", 0),
        ("max", "max", sys.maxsize),
    ],
)
def test_memory_of_a_container_is_what_its_group_allows(tmp_path, inner, outer, expected):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slice/job\n")
    for folder, limit in ((tmp_path / "fs/slice/job", inner), (tmp_path / "fs/slice", outer)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("300\n")
        (folder / "memory.stat").write_text("anon 200\ninactive_file 100\n")
    assert _free_in_group(tmp_path / "fs", membership) == expected
    assert _free_in_group(tmp_path / "fs", tmp_path / "no such file") == sys.maxsize


# --- whole runs --------------------------------------------------------------------------------------------------


def initializers(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    onnx.save(residual(), folder / "model.onnx")
    np.savez(folder / "calib.npz", **feeds(residual(), 48))
    return folder


@pytest.fixture(scope="module")
def plenty(here) -> QuantizationResult:
    return quantize(here / "model.onnx", here / "calib.npz", Settings(method="qdrop", iters=10, batch_size=8))


def test_run_without_room_for_a_cache_spills_everything_and_learns_the_same(here, plenty, monkeypatch):
    pools = []

    def spied(*arguments, **options) -> Pool:
        pools.append(Pool(*arguments, **options))
        return pools[-1]

    monkeypatch.setattr(learner, "Pool", spied)
    cache_nothing(monkeypatch)
    chosen = Settings(method="qdrop", iters=10, batch_size=8)
    scarce = quantize(here / "model.onnx", here / "calib.npz", chosen)
    assert initializers(scarce.model) == initializers(plenty.model)
    assert [u.loss for u in scarce.units] == [u.loss for u in plenty.units]
    (pool,) = pools
    image = 48 * 8 * 16 * 16
    assert pool.peak_spilled >= 3 * image  # the input as halves and as codes, at least
    gc.collect()
    assert (pool.used, pool.spilled) == (0, 0)


@pytest.mark.slow
def test_little_memory_of_the_command_line(here, plenty, tmp_path):
    """A process of its own without room for a cache writes the same numbers and leaves nothing behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [*COMMAND_LINE, "quantize", str(here / "model.onnx")]
    options = f"--calib {here / 'calib.npz'} --method qdrop --iters 10 --batch-size 8 --threads 1 --memory 2GB".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    done = subprocess.run(
        [*command, *options, "-o", str(tmp_path / "out.onnx")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert initializers(onnx.load(tmp_path / "out.onnx")) == initializers(plenty.model)
    # ONNX Runtime may keep a note of a few bytes there.
    assert all(path.stat().st_size < 1000 for path in temporary.rglob("*"))


@given(st.floats(1e-5, 1.0), st.integers(0, 65535), st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=30, deadline=None)
def test_codes_of_sixteen_bits_are_kept_without_loss(scale: float, zero: int, seed: int) -> None:
    grid = Grid(torch.tensor(scale), torch.tensor(float(zero)), 16)
    codes = np.random.default_rng(seed).integers(0, 65536, (3, 50))
    x = (torch.from_numpy(codes.astype(np.float32)) - grid.zero_point) * grid.scale
    assert torch.equal(Store.of(x, grid).read(0, 3), fake_quantize(x, grid))


def test_large_batches_are_written_in_parts(monkeypatch):
    x = normal((7, 3, 4, 5), 0)
    whole_at_once = Store.of(x)
    monkeypatch.setattr(cache, "WRITTEN", 2 * 3 * 4 * 5)
    in_parts = Store.of(x)
    assert torch.equal(in_parts.read(0, 7), whole_at_once.read(0, 7))
    assert in_parts.moments == pytest.approx(whole_at_once.moments)
    rows = Store(Pool(), 3, rows=2)
    rows.write(1, x[:4])
    assert torch.equal(rows.read(1, 3), whole_at_once.read(0, 4))


def test_what_is_read_is_no_part_of_the_store():
    for x in (torch.arange(12).view(4, 3), normal((4, 3), 0)):
        store = Store.of(x)
        before = store.read(1, 3).clone()
        store.read(1, 3).zero_()
        assert torch.equal(store.read(1, 3), before)


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126.0, 128.0)
    wanted = [math.ldexp(1.0, int(e)) for e in exponents]
    assert cache._power_of_two(exponents).tolist() == wanted

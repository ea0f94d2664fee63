"""Activations between units, kept small: codes as bytes, floats as half precision, on disk where the memory ends.

A :class:`Pool` hands out memory while its budget lasts and memory-mapped temporary files after that; a :class:`Store` keeps
one tensor of all calibration samples in it and gives batches (or windows of them) back as float32.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.machine.amounts import byte_size
from mrecg_onnx.quantizers import Grid, quantize_codes

__all__ = ["Pool", "Region", "Store", "default_memory", "give_back", "keep_freed"]

#: ((row start, row stop), (column start, column stop)) of a map.
Region = tuple[tuple[int, int], tuple[int, int]]

#: Mantissas of half precision are used between 2^-14 and 2^PEAK, so that sums of them stay finite, too.
PEAK = 10
#: Share of the free memory of a GPU that the cache may take.
GPU_SHARE = 0.6
#: Bytes from which the system gives a block of its own (the most that glibc takes), and bytes that are kept when they are freed.
KEPT_AT_ONCE, KEPT_FREED = 32 << 20, 128 << 20
#: The same where there is less than so much to stay within, in bytes.
TIGHT_AT_ONCE, TIGHT_FREED, KEEPING = 1 << 20, 4 << 20, 10**9
#: Numbers that are written at a time.
WRITTEN = 1 << 18
#: glibc's names for them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def default_memory() -> int:
    """Bytes that a run may use where the user names none: half of what is free, to a container as to the machine."""
    free = int(psutil.virtual_memory().available)
    return min(free, _free_in_group(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))) // 2


def _free_in_group(mount: Path, membership: Path) -> int:
    """Bytes that the control groups of this process (cgroup v2, as containers and Slurm use them) still allow."""
    free = sys.maxsize
    with contextlib.suppress(OSError, StopIteration):
        path = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            with contextlib.suppress(OSError, ValueError, KeyError):  # the root has no limit, and "max" is none
                limit = int((folder / "memory.max").read_text())
                fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = int(fields["inactive_file"])  # given up as soon as somebody wants it
                free = min(free, max(0, limit - int((folder / "memory.current").read_text()) + cached))
    return free


def give_back() -> None:
    """Return what was freed to the system: glibc keeps half a gigabyte of pieces after the range search of a small network."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed(memory: int) -> None:
    """Let the process keep what it frees for what it needs next, up to 128 MB, instead of returning and getting it page by page.

    Of a small ``memory`` to stay within (bytes) nothing is kept: there is none to spare.

    The system clears every page that it hands out: half a second in five for the tensors of a network that are larger than the
    processor's cache. glibc does this for up to 64 MB by itself, less at first; whoever has set it otherwise is left alone.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        tight = memory < KEEPING
        library.mallopt(_M_MMAP_THRESHOLD, TIGHT_AT_ONCE if tight else KEPT_AT_ONCE)
        library.mallopt(_M_TRIM_THRESHOLD, TIGHT_FREED if tight else KEPT_FREED)


def channels_last(device: torch.device) -> bool:
    """True where convolutions on float32 images are faster with the channels behind.

    On the CPU two to six times (depthwise 3x3 on 192 channels, 28x28, batch 32, one thread: forward 2.5 ms against 30, backward
    7 against 43); on a GPU five times slower (an inverted residual of 96 channels, 56x56, on an H100: 5.6 ms against 1.1).
    """
    return device.type != "cuda"


class Pool:
    """Memory for stores: ``budget`` bytes of it (on the GPU, then pinned, where the network runs there), then files.

    The files are in ``folder`` (default: the system's temporary folder, TMPDIR), have no name there and go away with the
    process however it ends.

    Attributes:
        used: bytes in memory now.
        spilled: bytes in files now.
        peak_spilled: the most there ever was in files.
    """

    def __init__(
        self, budget: int | None = None, device: torch.device | str = "cpu", folder: Path | None = None
    ) -> None:
        self.budget, self.device, self.folder = budget, torch.device(device), folder
        self.used = self.spilled = self.peak_spilled = 0
        self.stores: weakref.WeakSet[Store] = weakref.WeakSet()
        self._left = False

    def leave_device(self) -> bool:
        """Move what is kept on the GPU to the machine's memory, and keep there what comes; False where that is so already."""
        if self.device.type == "cpu" or self._left:
            return False
        self._left = True
        for store in list(self.stores):
            store.move()
        torch.cuda.empty_cache()
        return True

    def block(self, shape: Sequence[int], dtype: torch.dtype) -> _Block:
        """Room for a tensor; it is given back when nobody holds the block any more.

        Raises:
            DataError: neither the memory nor the temporary folder has room for it.
        """
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        if (
            self.device.type == "cuda"
            and not self._left
            and size <= torch.cuda.mem_get_info(self.device)[0] * GPU_SHARE
        ):
            return _Block(self, torch.empty(tuple(shape), dtype=dtype, device=self.device), 0)
        if self.budget is None or self.used + size <= self.budget:
            pinned = self.device.type == "cuda"
            return _Block(self, torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned), size)
        return _FileBlock(self, shape, dtype, size)


class _Block:
    """A tensor in memory."""

    def __init__(self, pool: Pool, tensor: Tensor, size: int) -> None:
        self.pool, self.tensor, self.size = pool, tensor, size
        pool.used += size

    def trim(self) -> None:
        """Called after every access."""

    def __del__(self) -> None:
        self.pool.used -= self.size


class _FileBlock(_Block):
    """A tensor in a memory-mapped file without a name."""

    def __init__(self, pool: Pool, shape: Sequence[int], dtype: torch.dtype, size: int) -> None:
        folder = str(pool.folder or os.environ.get("TMPDIR", ""))
        try:
            folder = folder if pool.folder is not None else tempfile.gettempdir()
            with tempfile.TemporaryFile(dir=folder) as file:
                # A mapped file that the disk has no room for would end the process at some later write.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, max(1, size))
                else:
                    file.truncate(max(1, size))
                self._map = mmap.mmap(file.fileno(), max(1, size))
        except OSError as error:
            raise DataError(
                f"no room for {byte_size(size)} of cached activations in '{folder}' ({error.strerror}): set TMPDIR to a "
                "folder with more space, raise --memory, or use fewer --samples"
            ) from error
        super().__init__(pool, torch.frombuffer(self._map, dtype=dtype, count=size // dtype.itemsize).view(*shape), 0)
        self._bytes = size
        pool.spilled += size
        pool.peak_spilled = max(pool.peak_spilled, pool.spilled)

    def trim(self) -> None:
        # Pages of the file stay in the system's cache; they leave this process's memory at once, not when it runs short.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def __del__(self) -> None:
        if hasattr(self, "_bytes"):
            self.pool.spilled -= self._bytes
            super().__del__()


class Store:
    """One tensor of all samples.

    Values on a grid are kept as their codes, one byte each (two beyond 8 bits) and without loss; other floats in half
    precision with a power of two for each sample, so that none is too large or too small; integers as they are. Images are
    kept in the layout that convolutions on the pool's device read fastest.

    Attributes:
        count: number of samples.
        rows: rows of the tensor that belong to a sample, next to each other (windows of an image, frames of a video).
        shape: shape of one row, () before the first write.
    """

    def __init__(self, pool: Pool, count: int, grid: Grid | None = None, rows: int = 1) -> None:
        self.pool, self.count, self.grid, self.rows = pool, count, grid, rows
        pool.stores.add(self)
        self.shape: tuple[int, ...] = ()
        self._block: _Block | None = None
        self._exponent: Tensor | None = None
        self._values, self._sum, self._squares = 0, 0.0, 0.0

    @classmethod
    def of(cls, x: Tensor, grid: Grid | None = None, pool: Pool | None = None) -> Store:
        """A store that holds ``x`` of shape [N, ...]."""
        store = cls(pool or Pool(device=x.device), len(x), grid)
        store.write(0, x)
        return store

    @property
    def _offset(self) -> int:
        """What is taken off the codes: 16 bits are kept as int16, torch has few operations for uint16."""
        return 1 << 15 if self.grid is not None and self.grid.bits > 8 else 0

    def __len__(self) -> int:
        return self.count

    @property
    def _last(self) -> bool:
        """The channels of images are behind."""
        return len(self.shape) == 3 and channels_last(self.pool.device)

    @property
    def place(self) -> torch.device:
        """Where the samples are kept."""
        return self._block.tensor.device if self._block is not None else self.pool.device

    @property
    def moments(self) -> tuple[float, float, float]:
        """Number, sum and sum of squares of the values written so far."""
        return self._values, self._sum, self._squares

    def write(self, start: int, x: Tensor) -> None:
        """Put ``x`` of shape [b * rows, ...] at the samples ``start`` and after.

        Raises:
            DataError: its shape differs from what was written before.
        """
        block = self._block or self._allocate(x)
        if tuple(x.shape[1:]) != self.shape:
            raise DataError(
                f"samples of different shapes, {tuple(x.shape[1:])} and {self.shape}: they cannot be calibrated together"
            )
        # A few rows at a time, so that all passes over them find them in the processor's cache.
        room, first = WRITTEN if x.device.type == "cpu" else x.numel(), start * self.rows
        for part in torch.split(x, max(1, room // max(1, math.prod(self.shape)))):
            self._put(block, first, part)
            first += len(part)
        block.trim()

    def _put(self, block: _Block, first: int, x: Tensor) -> None:
        """Write rows from ``first`` on."""
        rows = slice(first, first + len(x))
        if x.is_floating_point():
            x = x.float()
            flat = (x.permute(0, 2, 3, 1) if self._last else x).reshape(len(x), -1)
            exact = flat.double().view(-1)
            self._values += x.numel()
            self._sum += float(exact.sum())
            self._squares += float(torch.dot(exact, exact))
        if self.grid is not None:
            x = quantize_codes(x, self.grid)
            x = x.sub_(self._offset) if self._offset else x
        elif x.is_floating_point():
            assert self._exponent is not None
            peak = torch.maximum(flat.amax(1), -flat.amin(1)) if x.numel() else x.new_zeros(len(x))
            exponent = torch.floor(torch.log2(peak.clamp(min=2.0**-100))).sub_(PEAK)
            self._exponent[rows] = exponent.to(self._exponent.device)
            x = x * _power_of_two(-exponent).view(-1, *[1] * len(self.shape))
        block.tensor[rows] = x.permute(0, 2, 3, 1) if self._last else x

    def _allocate(self, x: Tensor) -> _Block:
        self.shape = tuple(x.shape[1:])
        inner = (*self.shape[1:], self.shape[0]) if self._last else self.shape
        if self.grid is not None:
            dtype = torch.int16 if self.grid.bits > 8 else torch.uint8
        elif x.is_floating_point():
            dtype = torch.float16
            self._exponent = torch.zeros(self.count * self.rows)
        else:
            dtype = x.dtype
        self._block = self.pool.block((self.count * self.rows, *inner), dtype)
        if self._exponent is not None:
            self._exponent = self._exponent.to(self._block.tensor.device)
        return self._block

    def move(self) -> None:
        """Keep what was written where the pool has room now."""
        if self._block is None:
            return
        old = self._block.tensor
        self._block = self.pool.block(old.shape, old.dtype)
        self._block.tensor.copy_(old)
        if self._exponent is not None:
            self._exponent = self._exponent.to(self._block.tensor.device)

    def gather(self, index: Tensor, region: Region | None = None) -> Tensor:
        """Samples ``index`` (int64, best on :attr:`place`), float32 (integers as they were), on the pool's device.

        Args:
            index: shape (b,).
            region: of images, the rows and columns wanted; everything by default.

        Returns:
            Shape [b * rows, ...].
        """
        assert self._block is not None, "nothing was written yet"
        values = self._block.tensor
        if region is not None:
            (top, bottom), (left, right) = region
            values = values[:, top:bottom, left:right] if self._last else values[:, :, top:bottom, left:right]
        index = index.to(values.device)
        if self.rows > 1:
            index = (index[:, None] * self.rows + torch.arange(self.rows, device=index.device)).flatten()
        rows = values.index_select(0, index)  # on the CPU ten times as fast as values[index]
        self._block.trim()
        return self._decode(rows, index)

    def read(self, start: int, stop: int) -> Tensor:
        """Samples ``start`` to ``stop`` in order, as :meth:`gather`."""
        assert self._block is not None, "nothing was written yet"
        rows = slice(start * self.rows, min(stop, self.count) * self.rows)
        values = self._block.tensor[rows]
        found = self._decode(values if self._coded else values.clone(), rows)
        self._block.trim()
        return found

    @property
    def _coded(self) -> bool:
        """What is kept are no values as they were."""
        return self.grid is not None or self._exponent is not None

    def _decode(self, rows: Tensor, index: Tensor | slice) -> Tensor:
        rows = rows.to(self.pool.device, non_blocking=True)
        if self.grid is not None:
            shift = self.grid.zero_point.to(rows.device) - self._offset
            rows = rows.to(torch.float32).sub_(shift).mul_(self.grid.scale.to(rows.device))
        elif self._exponent is not None:
            factor = _power_of_two(self._exponent[index]).to(rows.device, non_blocking=True)
            rows = rows.to(torch.float32).mul_(factor.view(-1, *[1] * len(self.shape)))
        return rows.permute(0, 3, 1, 2) if self._last else rows


def _power_of_two(exponent: Tensor) -> Tensor:
    """2 to the whole numbers ``exponent`` of -126 to 127, in float32; no device rounds it, wherever the samples are kept."""
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)

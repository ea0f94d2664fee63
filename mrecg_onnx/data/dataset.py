"""The data set: model inputs by index, read when asked for, in batches or all at once.

When things are read: opening lists the files and chooses among them (``samples``, ``limit``); nothing is decoded before
:meth:`Dataset.batch`, :meth:`Dataset.batches` or :meth:`Dataset.load`, so that a validation set of any size costs one
batch of memory. A file that cannot be decoded is therefore found on the way: ``batches`` and ``load`` skip it and note
it in :attr:`Dataset.skipped`, and give up with a DataError once more than 5 % of the chosen files are lost. A skipped
file is not replaced by another one: which images were chosen depends on their names and the seed, not on their bytes.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.text import first_of
from mrecg_onnx.data.choosing import middle_of_strata
from mrecg_onnx.data.enough import few, require_enough
from mrecg_onnx.data.fitting import as_array, has_array
from mrecg_onnx.data.taken import require_taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.preprocess import Preprocess

logger = logging.getLogger(__name__)

__all__ = ["Dataset", "check_lost", "digest", "lost_text"]

MAX_LOST = 0.05  # share of unreadable images above which a data set is called broken instead of being thinned out
_LOAD_CHUNK = 64  # images decoded at a time by load()
_LOOK_BYTES = 16 << 20  # of samples looked at together: fast memory, and no more than a batch


class Dataset(ABC):
    """Model inputs by index, read when asked for; made by :mod:`mrecg_onnx.data.opening`.

    ``len()`` counts what was chosen, including images that turn out to be unreadable.

    Attributes:
        inputs: the model's inputs.
        files: the chosen image files in order, or None for arrays.
        labels: (len,) int64 class indices, or None.
        labels_source: where they come from, for messages.
        preprocess: what is done to images, resolved for the model; None for arrays.
        targets: what outputs are held against as it was given, one a sample, where it came with the samples in Python.
        total: how many samples there were to choose from; None where only reading them to the end would tell.
        doubts: what makes them such as tell nothing, a sentence each: for a result's warnings, once they were gone over.
        origin: how the data were made, as plain JSON data, where no camera took them; None for files.
    """

    total: int | None = None
    origin: dict[str, Any] | None = None

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        *,
        files: list[Path] | None = None,
        labels: NDArray[np.int64] | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.files = files
        self.labels = labels
        self.labels_source = "given"
        self.doubts: tuple[str, ...] = ()
        self._cut = False
        self.preprocess = preprocess
        self.targets: Sequence[Any] | None = None
        self._lost: dict[int, str] = {}
        self._whole: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def whole(self) -> int:
        """``len()`` of the set that this one is a share of; its own otherwise."""
        return len(self) if self._whole is None else self._whole

    @property
    def is_part(self) -> bool:
        """There are more than were asked for, or may be: nobody looked behind those of a stream."""
        return self._cut or (self.total is not None and self.total > self.whole)

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """Files found unreadable so far, each once, with the reason; complete after ``load`` or a whole ``batches``."""
        return self._lost_among(self._lost)

    def _lost_among(self, indices: Iterable[int]) -> list[tuple[Path, str]]:
        files = self.files or []  # rows of arrays are never lost
        return [(files[index], self._lost[index]) for index in sorted(indices)]

    def shard(self, rank: int, size: int) -> Dataset:
        """Every ``size``-th sample from the ``rank``-th on: what one of ``size`` processes reads.

        Unreadable files are counted against the whole set; :func:`check_lost` adds up those of all shares.
        """
        share = self._share(rank, size)
        share._whole = self.whole  # noqa: SLF001 - its own class
        share.targets = None if self.targets is None else self.targets[rank::size]
        return share

    @abstractmethod
    def _share(self, rank: int, size: int) -> Dataset: ...

    def decode_within(self, most: int) -> tuple[int, str]:  # noqa: ARG002 - of those that decode
        """Keep what reading takes beside a batch below ``most`` bytes.

        Returns:
            The bytes that the largest file needs at least, and which it is, for messages.
        """
        return 0, ""

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with the files chosen and their sizes, so that two runs can tell whether they see the same data."""

    @abstractmethod
    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """Inputs of those ``indices`` that can be read, and which these are, in order."""

    def require_values(self) -> None:  # noqa: B027 - most have none that could be wrong
        """Look at all that lies in files of arrays, before any work: what only a later stage uses is looked at here, too.

        Images are numbers whatever they hold, arrays in memory were looked at when they were opened, and what is handed over one
        after the other is as it comes.

        Raises:
            DataError: NaN, an infinity, or a value that the input's type does not hold; its sample is named.
        """

    def require_taken(
        self,
        run: Callable[[dict[str, NDArray[Any]]], object],
        model: str,
        batches: Iterable[tuple[Mapping[str, NDArray[Any]], NDArray[np.int64]]] | None = None,
    ) -> None:
        """Refuse integers that a model fails on, as :func:`mrecg_onnx.data.taken.require_taken` has it.

        Args:
            run: runs inputs ``[N, ...]`` by name.
            model: how messages call it.
            batches: inputs and where their samples lie here; all samples by default.

        Raises:
            DataError: the model fails on a sample, which is named.
        """
        if self.preprocess is None:  # pixels are no indices
            seen = self.batches(_LOAD_CHUNK) if batches is None else batches
            require_taken(run, self.inputs, self.named, model, seen)

    def _look_at_all(self) -> None:
        """Read all samples, a few at a time, and keep none."""
        row = max(1, sum(rows.nbytes for rows in self._read([0])[0].values()))
        size = max(1, min(_LOAD_CHUNK, _LOOK_BYTES // row))
        for start in range(0, len(self), size):
            self._read(range(start, min(len(self), start + size)))

    def labels_key(self) -> bytes:
        """Changes with what outputs are held against; empty where there is nothing."""
        found = hashlib.sha256()
        if self.targets is not None and hasattr(self.targets, "fingerprint"):
            found.update(self.targets.fingerprint().encode())
        elif self.targets is not None:
            for target in self.targets:
                _add(found, target)
        targets = b"" if self.targets is None else found.digest()
        return (b"" if self.labels is None else self.labels.tobytes()) + targets

    @property
    def labels_handed(self) -> bool:
        """Labels are values that were handed over in Python, no file and no names of folders; for messages."""
        return self.targets is not None

    def targets_of(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Any] | None:
        """What the outputs of a batch are held against: as it was given with the samples, else their classes; None without."""
        if self.targets is not None:
            return [self.targets[int(index)] for index in indices]
        return None if self.labels is None else [int(self.labels[int(index)]) for index in indices]

    def named(self, index: int) -> str:
        """A sample by where it lies, for messages."""
        return str(self.files[index]) if self.files is not None else f"row {index}"

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """Exactly the samples asked for: input name -> (len(indices), ...) in the input's dtype.

        Raises:
            DataError: one of them cannot be read (nothing is skipped here), or holds NaN or Inf.
            IndexError: an index is not in 0..len-1.
        """
        wanted = [int(index) for index in indices]
        for index in wanted:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
        inputs, kept = self._read(wanted)
        if len(kept) < len(wanted):
            raise DataError(f"cannot read {lost_list(self._lost_among(set(wanted) - set(kept)))}")
        return inputs

    def batches(self, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
        """All readable samples in order: (inputs, indices), ``size`` at a time, fewer only in the last batch.

        ``labels[indices]`` are the labels of a batch, whatever was skipped.

        Raises:
            DataError: more than 5 % of the files cannot be read, or an array holds NaN or Inf.
        """
        if size < 1:
            raise SettingsError(f"batch size must be 1 or more, got {size}")
        parts: list[dict[str, NDArray[Any]]] = []
        held: list[int] = []
        position = 0
        while position < len(self):
            ahead = range(position, min(len(self), position + size - len(held)))
            position = ahead.stop
            inputs, kept = self._read(ahead)
            if kept:
                parts.append(inputs)
                held += kept
            if held and (len(held) == size or position == len(self)):
                yield _concatenate(parts), np.array(held, np.int64)
                parts, held = [], []

    def spread(self, size: int, limit: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Readable samples ``size`` at a time, fewer where some cannot be read: inputs alone.

        Args:
            size: samples read at a time.
            limit: at most so many, spread evenly over the set rather than taken from its start (folders are often
                sorted by class).

        Raises:
            DataError: as :meth:`batches`.
        """
        indices = middle_of_strata(len(self), limit)
        for start in range(0, len(indices), size):
            inputs, kept = self._read(indices[start : start + size])
            if kept:
                yield inputs

    def head(self, count: int, samples: int | None = None, processes: int = 1) -> dict[str, NDArray[Any]]:
        """What :meth:`load` gives, to calibrate on.

        Where all samples are the same, that is said, and among :attr:`doubts`, as is that they are few.

        Args:
            count: at most so many.
            samples: how many were asked for; None: all.
            processes: how many share them.

        Raises:
            MrecgError: as :meth:`load`, or there are too few (:func:`mrecg_onnx.data.enough.require_enough`).
        """
        found = self.load(count)
        rows = len(next(iter(found.values())))
        require_enough(len(self), rows, samples, processes)
        if rows > 1 and all((array == array[:1]).all() for array in found.values()):
            name, array = next(iter(found.items()))
            one = array.size > 0 and bool((array == array.flat[0]).all())
            what = f"every value of input '{name}' is {float(array.flat[0]):g}" if one else "all inputs are the same"
            learned = f"ranges are learned from {'nothing' if one else 'one image'}; give real inputs"
            doubt = f"{what} in the {rows} calibration images looked at: {learned}"
            logger.warning("%s", doubt)
            self.doubts = (doubt,)
        if not self.is_part and self.origin is None:  # so few of more are somebody's choice
            self.doubts += few(len(self), "rows" if self.preprocess is None else "images")
        return found

    def load(self, limit: int | None = None) -> dict[str, NDArray[Any]]:
        """All readable samples at once: input name -> (samples, ...) in the input's dtype.

        Args:
            limit: as in :meth:`spread`.

        Raises:
            DataError: as :meth:`batches`.
        """
        indices = middle_of_strata(len(self), limit)
        out: dict[str, NDArray[Any]] = {}
        filled = 0
        for inputs in self.spread(_LOAD_CHUNK, limit):  # filled in place: joining chunks would hold everything twice
            count = len(next(iter(inputs.values())))
            for name, rows in inputs.items():
                whole = out.setdefault(name, np.empty((len(indices), *rows.shape[1:]), rows.dtype))
                whole[filled : filled + count] = rows
            filled += count
        if not filled:
            raise DataError(f"none of the {len(indices)} files asked for can be read: {lost_list(self.skipped)}")
        return {name: rows[:filled] for name, rows in out.items()}


def check_lost(lost: Sequence[str], whole: int) -> None:
    """Give up on a set of ``whole`` images when those ``lost`` (as file and reason) are more than 5 % of it.

    Raises:
        DataError: they are.
    """
    if len(lost) <= MAX_LOST * whole:
        return
    if whole == 1:
        raise DataError(f"cannot read {lost[0]}")
    raise DataError(
        f"more than {MAX_LOST:.0%} of {whole} images cannot be read ({len(lost)} so far): {first_of(lost)}; "
        "replace or remove them"
    )


def digest(paths: Sequence[Path], more: str) -> str:
    """SHA-256 over the names and sizes of ``paths`` and over ``more``, in hexadecimal."""
    listing = "\n".join(f"{path.name} {path.stat().st_size if path.exists() else -1}" for path in paths)
    return hashlib.sha256(f"{listing}\n{more}".encode("utf-8", "surrogateescape")).hexdigest()


def _concatenate(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _add(found: Any, target: Any) -> None:
    """Add a target to a digest, by the numbers in it."""
    if isinstance(target, Mapping):
        for name in sorted(target, key=str):
            found.update(f"{name}:".encode("utf-8", "surrogateescape"))
            _add(found, target[name])
    elif isinstance(target, list | tuple):
        found.update(f"[{len(target)}]".encode())
        for one in target:
            _add(found, one)
    else:
        array = as_array(target, "a target") if has_array(target) else np.asarray(target)
        numbers = array.dtype.kind in "fiub"
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(
            np.ascontiguousarray(array).tobytes() if numbers else repr(target).encode("utf-8", "backslashreplace")
        )


def lost_text(item: tuple[Path, str]) -> str:
    """An unreadable file and the reason, as messages have them."""
    return f"{item[0]} ({item[1]})"


def lost_list(lost: Sequence[tuple[Path, str]]) -> str:
    return first_of([lost_text(item) for item in lost])

"""Data sets of what is handed over in Python: arrays as they lie in memory, and items that are kept, asked for, or go by.

What calibration reads several times is read once and kept (:class:`KeptDataset`): a shuffled DataLoader would have another order
in every pass, a random transform other pixels, a generator nothing at all. Validation goes over its data once, so that nothing of
them needs to be kept.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.data.choosing import middle_of_strata
from mrecg_onnx.data.dataset import Dataset
from mrecg_onnx.data.fitting import cast
from mrecg_onnx.data.samples import Rows, Sampler, class_indices, no_classes
from mrecg_onnx.data.spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.sources import Indexed

__all__ = ["IndexedDataset", "KeptDataset", "MemoryDataset", "PassingDataset"]

logger = logging.getLogger(__name__)

#: Samples after which a stream that nobody bounded is taken for endless.
MOST = 1 << 20
#: Samples, and bytes of them, that stay of those that go by, for what looks at a few once more.
HEAD, HEAD_BYTES = 256, 64 * 10**6
#: Samples that are hashed at a time.
_CHUNK = 64


class _Digest:
    """SHA-256 of samples in their order: the same for the same samples, whatever they were handed over in."""

    def __init__(self) -> None:
        self._inputs: dict[str, Any] = {}

    def add(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """The next rows."""
        for name, rows in inputs.items():
            found = self._inputs.get(name)
            if found is None:
                described = f"{name} {rows.dtype.str} {rows.shape[1:]}"
                found = self._inputs[name] = hashlib.sha256(described.encode("utf-8", "surrogateescape"))
            found.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    @property
    def text(self) -> str:
        """In hexadecimal."""
        return hashlib.sha256(
            "".join(self._inputs[name].hexdigest() for name in sorted(self._inputs)).encode()
        ).hexdigest()


class _Chosen(Dataset):
    """Samples that lie somewhere and are told by their place there.

    Args:
        inputs: the model's inputs.
        chosen: places of the samples, in order.
        targets: one for each, None without.
        source: where they are from, for messages.
    """

    def __init__(
        self, inputs: Sequence[InputSpec], chosen: NDArray[np.int64], targets: Sequence[Any] | None, source: str
    ) -> None:
        super().__init__(inputs)
        self._chosen, self._source_name = chosen, source
        self.labels_source = f"of {source}"
        self.label(targets)

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def labels_handed(self) -> bool:
        """As the base class has it."""
        return True

    def named(self, index: int) -> str:
        """As the base class has it."""
        return f"sample {int(self._chosen[index])} of {self._source_name}"

    def label(self, targets: Sequence[Any] | None) -> None:
        """Take ``targets``, one for each sample."""
        self.targets = None if targets is None else list(targets)
        self.labels = None if targets is None else class_indices(targets)

    def _share(self, rank: int, size: int) -> Dataset:
        part = copy.copy(self)
        part._chosen = self._chosen[rank::size]  # noqa: SLF001 - its own class
        part.labels = None if self.labels is None else self.labels[rank::size]
        return part

    def fingerprint(self) -> str:
        """Changes with any value of any sample."""
        found = _Digest()
        for start in range(0, len(self), _CHUNK):
            found.add(self._read(range(start, min(len(self), start + _CHUNK)))[0])
        return found.text


class MemoryDataset(_Chosen):
    """Rows of arrays in memory, which stay the caller's.

    Args:
        inputs: the model's inputs.
        arrays: for each of them ``[N, ...]``.
        chosen: the rows that are used.
        targets: for these, None without.
        called: what messages call the arrays.

    Raises:
        DataError: NaN, an infinity, or a value that an input's type does not hold.
    """

    def __init__(
        self,
        inputs: Sequence[InputSpec],
        arrays: Mapping[str, NDArray[Any]],
        chosen: NDArray[np.int64],
        targets: Sequence[Any] | None,
        called: str,
    ) -> None:
        super().__init__(inputs, chosen, targets, called)
        self._arrays, self._called = dict(arrays), called
        self._look_at_all()

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        rows, place = self._chosen[list(indices)], ("sample", f" of {self._called}")
        return {s.name: cast(self._arrays[s.name][rows], s, rows, place) for s in self.inputs}, list(indices)


class KeptDataset(_Chosen):
    """Samples that are read once, here and now, and kept in memory or in a file.

    Args:
        sampler: makes rows of items.
        items: the items.
        most: samples taken at most; what comes behind them is not asked for.
        hold: bytes up to which they stay in memory.
        labelled: their targets are kept, too.
        called: what messages call them.

    Raises:
        DataError: an item is no sample, there are none, or they do not end.
    """

    def __init__(
        self, sampler: Sampler, items: Iterable[Any], most: int | None, *, hold: int, labelled: bool, called: str
    ) -> None:
        found = _Digest()
        self._spools: dict[str, Spool] = {}
        targets: list[Any] | None = None
        count = 0
        for rows in _taken(sampler, items, most, _Wanted(labelled=labelled, called=called), called):
            for name, array in rows.inputs.items():
                if name not in self._spools:
                    self._spools[name] = Spool(hold // len(rows.inputs), array.shape[1:], array.dtype)
                self._spools[name].add(array)
            found.add(rows.inputs)
            if rows.targets is not None:
                targets = [] if targets is None else targets
                targets += rows.targets
            count += rows.count
        if most is not None and count == most:
            logger.info("%s: the first %d samples are used", called, count)
        self._found = found.text
        super().__init__(sampler.inputs, np.arange(count), targets, called)
        self.preprocess = sampler.preprocess
        self._cut = count == most

    def fingerprint(self) -> str:
        """Changes with any value of any sample."""
        return self._found if self.whole == len(self) else super().fingerprint()

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        rows = self._chosen[list(indices)]
        return {name: spool.read(rows) for name, spool in self._spools.items()}, list(indices)


class _Wanted:
    """Takes targets off where nobody wants them, and sees to it that all samples have one or none has."""

    def __init__(self, *, labelled: bool, called: str) -> None:
        self._labelled, self._called = labelled, called
        self._there: bool | None = None

    def of(self, rows: Rows, first: int) -> Rows:
        """``rows``, the first of which is sample ``first``, with the targets that are wanted.

        Raises:
            DataError: they have targets and those before have not, or the other way.
        """
        if not self._labelled:
            return replace(rows, targets=None)
        there = rows.targets is not None
        if self._there not in {None, there}:
            raise DataError(
                f"sample {first} of {self._called} has {'a' if there else 'no'} target, those before it have "
                f"{'none' if there else 'one'}: give one for each, or say labels='none'"
            )
        self._there = there
        return rows


def _taken(sampler: Sampler, items: Iterable[Any], most: int | None, wanted: _Wanted, called: str) -> Iterator[Rows]:
    """Rows of items, ``most`` together; no item more is asked for than they need."""
    count = 0
    for item in items:
        rows = wanted.of(sampler.take(item, count), count)
        if most is not None and count + rows.count > most:
            rows = _cut(rows, 0, most - count)
        count += rows.count
        yield rows
        if count == most:
            return
        if most is None and count > MOST:
            raise DataError(f"{called} goes on behind {MOST:,} samples: say how many to use, with samples or limit")


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    inputs = {name: array[start:stop] for name, array in rows.inputs.items()}
    return Rows(inputs, None if rows.targets is None else rows.targets[start:stop], min(stop, rows.count) - start)


def _picked(rows: Rows, places: NDArray[np.int64]) -> Rows:
    targets = None if rows.targets is None else [rows.targets[i] for i in places]
    return Rows({name: array[places] for name, array in rows.inputs.items()}, targets, len(places))


def _joined(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    known = all(part.targets is not None for part in parts)
    targets = [target for part in parts for target in part.targets or ()] if known else None
    return Rows(inputs, targets, sum(part.count for part in parts))


class IndexedDataset(_Chosen):
    """Samples that are asked for by their place whenever they are wanted; their labels are known once they were read.

    Args:
        source: has them, one an item.
        sampler: makes rows of them.
        chosen: the places of those that are used.
        labelled: their own targets are used.
    """

    def __init__(self, source: Indexed, sampler: Sampler, chosen: NDArray[np.int64], *, labelled: bool) -> None:
        super().__init__(sampler.inputs, chosen, None, str(source))
        self.preprocess = sampler.preprocess
        self._source, self._sampler = source, sampler
        self._wanted = _Wanted(labelled=labelled, called=str(source))
        self._recent: dict[int, Any] = {}
        self._classes = True

    def _share(self, rank: int, size: int) -> Dataset:
        part = super()._share(rank, size)
        assert isinstance(part, IndexedDataset)
        part._recent = {}  # noqa: SLF001 - its own class
        return part

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        found, recent = [], {}
        for index in indices:
            place = int(self._chosen[index])
            item = self._source.first if place == 0 else self._source.item(place)
            rows = self._wanted.of(self._sampler.take(item, place), place)
            if rows.count != 1:
                raise DataError(
                    f"sample {place} of {self._source} has {rows.count} rows, the first one has one: give one each"
                )
            if rows.targets is not None:
                recent[int(index)] = rows.targets[0]
            found.append(rows)
        self._recent = recent
        if recent and self._classes:
            classes = class_indices(list(recent.values()), int(self._chosen[min(recent)]))
            self._classes = classes is not None
            if classes is None and self._sampler.classes:
                self.doubts = (no_classes(list(recent.values()), str(self._source)),)
            labels = np.zeros(len(self), np.int64) if self.labels is None else self.labels
            labels[list(recent)] = 0 if classes is None else classes
            self.labels = None if classes is None else labels
        return _joined(found).inputs if found else {}, list(indices)

    def targets_of(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Any] | None:
        """As the base class has it, of samples of the last batch."""
        return [self._recent[int(i)] for i in indices] if self._recent else super().targets_of(indices)


class PassingDataset(Dataset):
    """Samples that go by in batches, of which nothing but the first few and the labels is kept.

    ``len()`` is what somebody says how many there are, and from the end of the first pass on how many there were.

    Args:
        begin: begins a pass over the items.
        sampler: makes rows of them.
        most: samples taken at most, None for all.
        expected: how many there are, as far as somebody says so.
        labelled: targets are used.
        called: what messages call them.
    """

    def __init__(
        self,
        begin: Callable[[], Iterable[Any]],
        sampler: Sampler,
        most: int | None,
        expected: int | None,
        *,
        labelled: bool,
        called: str,
    ) -> None:
        super().__init__(sampler.inputs, preprocess=sampler.preprocess)
        if most is not None and most < 1:
            raise SettingsError(f"the number of samples (--samples, --limit) must be 1 or more, got {most}")
        self._begin, self._sampler, self._limit, self._called = begin, sampler, most, called
        self._expected, self._labelled = expected, labelled
        self._part, self._parts, self._count = 0, 1, 0
        self._head: list[Rows] = []
        self._recent: tuple[int, list[Any] | None] = 0, None
        self.labels_source = f"of {called}"

    def __len__(self) -> int:
        return max(self._count, min(self._expected or 0, self._limit or MOST))

    def named(self, index: int) -> str:
        """As the base class has it."""
        return f"sample {index * self._parts + self._part} of {self._called}"

    def _share(self, rank: int, size: int) -> Dataset:
        part = copy.copy(self)
        part._part, part._parts, part._head = rank, size, []  # noqa: SLF001 - its own class
        if self._expected is not None:
            part._expected = len(range(rank, self._expected, size))  # noqa: SLF001
        return part

    def fingerprint(self) -> str:
        """Changes with any value of any sample; they go by once for it.

        Raises:
            DataError: they go by once only, and did.
        """
        found = _Digest()
        for inputs, _ in self.batches(_CHUNK):
            found.add(inputs)
        return found.text

    def batches(self, size: int) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
        """All samples in order, as the base class has it: another pass.

        Raises:
            DataError: an item is no sample, or they go by once only and did.
        """
        if size < 1:
            raise SettingsError(f"batch size must be 1 or more, got {size}")
        count, labels = 0, np.zeros(1024, np.int64)
        fresh, classes = not self._head, True
        self.labels, held = None, 0
        for rows in self._chunks(size):
            self._recent = count, rows.targets
            found = class_indices(rows.targets, count) if rows.targets is not None and classes else None
            classes = rows.targets is None or found is not None
            if rows.targets is not None and not (classes or self.doubts) and self._sampler.classes:
                self.doubts = (no_classes(rows.targets, self._called),)
            if count + rows.count > len(labels):
                labels = np.concatenate([labels, np.zeros(max(len(labels), rows.count), np.int64)])
            if found is not None:
                labels[count : count + rows.count] = found
            self.labels = labels[: count + rows.count] if found is not None else None
            if fresh and count < HEAD and held < HEAD_BYTES:
                self._head.append(_picked(rows, np.arange(min(rows.count, HEAD - count))))
                held += sum(array.nbytes for array in self._head[-1].inputs.values())
            count += rows.count
            self._count = max(self._count, count)
            yield rows.inputs, np.arange(count - rows.count, count)
        self._expected, self._count = None, count

    def _chunks(self, size: int) -> Iterator[Rows]:
        """Rows of this share, ``size`` at a time."""
        waiting: list[Rows] = []
        for rows in self._shared():
            waiting.append(rows)
            if sum(part.count for part in waiting) < size:
                continue
            whole = _joined(waiting)
            for start in range(0, whole.count - size + 1, size):
                yield _cut(whole, start, start + size)
            rest = whole.count % size
            waiting = [_cut(whole, whole.count - rest, whole.count)] if rest else []
        if waiting:
            yield _joined(waiting)

    def _shared(self) -> Iterator[Rows]:
        first = 0
        wanted = _Wanted(labelled=self._labelled, called=self._called)
        for rows in _taken(self._sampler, self._begin(), self._limit, wanted, self._called):
            places = np.arange((self._part - first) % self._parts, rows.count, self._parts)
            first += rows.count
            if len(places):
                yield rows if self._parts == 1 else _picked(rows, places)

    def spread(self, size: int, limit: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Of the first few samples, as the base class has it of all."""
        count = self._look()
        indices = middle_of_strata(count, limit)
        for start in range(0, len(indices), size):
            yield self._read(indices[start : start + size])[0]

    def _look(self) -> int:
        """How many of the first samples are kept; they are read where none went by."""
        if not self._head:
            for _ in self.batches(_CHUNK):
                if self._count >= HEAD:
                    break
        return sum(rows.count for rows in self._head)

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        if max(indices, default=-1) >= self._look():
            raise DataError(f"{self._called} goes by once: only its first samples can be asked for again")
        return _picked(_joined(self._head), np.array(indices, np.int64)).inputs, list(indices)

    @property
    def labels_handed(self) -> bool:
        """As the base class has it."""
        return True

    def targets_of(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Any] | None:
        """As the base class has it, of samples of the last batch."""
        start, targets = self._recent
        return None if targets is None else [targets[int(i) - start] for i in indices]

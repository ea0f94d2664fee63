"""Data that are handed over in Python: what they are recognised by, and their items one after the other.

Three forms are enough for all kinds. :class:`Whole`: arrays with the batch first. :class:`Indexed`: a number of items, each asked
for by its place. :class:`Stream`: items that come one after the other, from a DataLoader, a generator or ONNX Runtime's
CalibrationDataReader. What an item may be says :mod:`mrecg_onnx.data.samples`. No library is imported to recognise its objects.
"""

from __future__ import annotations

import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from PIL import Image

from mrecg_onnx.converters.errors import DataError, MrecgError, first_line
from mrecg_onnx.data.dataset import Dataset
from mrecg_onnx.data.fitting import has_array
from mrecg_onnx.data.labels import LABEL_NAMES

__all__ = [
    "CalibrationReader", "Data", "Given", "Indexed", "Labels", "Samples", "Source", "Stream", "Whole", "given", "image_like",
    "is_path", "parts",
]  # fmt: skip

T = TypeVar("T")


@runtime_checkable
class Samples(Protocol):
    """A data set of your own: so many samples, each read when it is asked for.

    Lists, the data sets of torch, torchvision and Hugging Face have these two methods, and a class of yours needs no others. A
    sample is the network's input as it is (an array or a tensor, without a batch axis or with one of any length), a PIL image or
    the path of one, which are preprocessed, a dict of these by input name, or a pair ``(any of these, target)``.
    """

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, index: int, /) -> Any:
        """Sample ``index``, 0 <= index < len; the same whenever it is asked for."""


@runtime_checkable
class CalibrationReader(Protocol):
    """What ONNX Runtime's quantizer calls a CalibrationDataReader; one that has ``rewind()`` can be read again."""

    def get_next(self) -> Any:
        """The next batch, a dict of arrays by input name; None behind the last one."""


class SupportsArray(Protocol):
    """NumPy makes an array of it: arrays, and tensors of torch, TensorFlow and JAX."""

    def __array__(self) -> Any:
        """The array."""


#: What calibration and validation take.
Data: TypeAlias = (
    "str | os.PathLike[str] | Dataset | Given | SupportsArray | Mapping[str, Any] | Samples | CalibrationReader | "
    "Iterable[Any] | Callable[[], Iterable[Any]]"
)


#: What labels handed over with the data are: a file, the word "none", or one a sample.
Labels: TypeAlias = "str | os.PathLike[str] | SupportsArray | Sequence[Any]"


class Given(ABC):
    """Data handed over in Python.

    Attributes:
        called: what messages call it.
        again: it can be read more than once.
    """

    again = True

    def __init__(self, called: str) -> None:
        self.called = called

    def __str__(self) -> str:
        return self.called

    @property
    @abstractmethod
    def images(self) -> bool:
        """Its items are PIL images or paths, which are preprocessed."""


class Whole(Given):
    """Arrays of all samples, the batch first.

    Args:
        called: what messages call it.
        arrays: by input name; a lone one may have the name None.
        targets: one for each sample, an array or a sequence; None without.
    """

    images = False

    def __init__(self, called: str, arrays: Mapping[Any, object], targets: object = None) -> None:
        super().__init__(called)
        self.arrays: dict[Any, object] = dict(arrays)
        self.targets = targets


class Indexed(Given):
    """So many items, each asked for by its place."""

    def __init__(self, called: str, source: Samples) -> None:
        super().__init__(called)
        self.source = source
        self.count = len(source)
        self._first: list[Any] = []

    def item(self, index: int) -> Any:
        """Item ``index``.

        Raises:
            DataError: whoever has it fails.
        """
        return _guarded(lambda: self.source[index], f"sample {index} of {self}")

    @property
    def first(self) -> Any:
        """The first item.

        Raises:
            DataError: there is none.
        """
        if not self.count:
            raise DataError(f"{self} is empty: give at least one sample")
        if not self._first:
            self._first.append(self.item(0))
        return self._first[0]

    @property
    def images(self) -> bool:
        """Its items are PIL images or paths."""
        return _of_images(self.first)

    def listed(self) -> list[Any] | None:
        """All items, where all are paths, or pairs of a path and a target, and lie in a list; None otherwise."""
        if isinstance(self.source, list | tuple) and all(is_path(parts(item)[0]) for item in self.source):
            return list(self.source)
        return None


class Stream(Given):
    """Items that come one after the other.

    Args:
        called: what messages call it.
        begin: begins from the start.
        again: it can do so more than once; what cannot is read in one pass.
        hint: items that will come, where somebody says so.
    """

    def __init__(
        self, called: str, begin: Callable[[], Iterator[Any]], *, again: bool, hint: int | None = None
    ) -> None:
        super().__init__(called)
        self.again, self.hint = again, hint
        self._begin, self._begun = begin, False
        # The pass that somebody looked at is the one that is read: another one of a shuffled DataLoader has another order.
        self._ahead: tuple[Any, Iterator[Any]] | None = None

    @property
    def first(self) -> Any:
        """The first item of the pass that comes next.

        Raises:
            DataError: there is none, or whoever makes the items fails.
        """
        if self._ahead is None:
            iterator = self._start()
            try:
                self._ahead = next(iterator), iterator
            except StopIteration:
                used = "" if self.again else ", or was read before: it can be read once"
                raise DataError(f"{self} is empty{used}") from None
        return self._ahead[0]

    @property
    def images(self) -> bool:
        """Its items are PIL images or paths."""
        return _of_images(self.first)

    def items(self) -> Iterator[Any]:
        """One pass.

        Raises:
            DataError: whoever makes the items fails, or this would be the second pass over what can be read once.
        """
        first = self.first
        assert self._ahead is not None
        iterator, self._ahead = self._ahead[1], None
        self._begun = True
        return itertools.chain([first], iterator)

    def _start(self) -> Iterator[Any]:
        if self._begun and not self.again:
            raise DataError(
                f"{self} can be read once, and was: give a list, a DataLoader or a function that makes a new one"
            )

        def guarded() -> Iterator[Any]:
            iterator = _guarded(self._begin, str(self))
            for number in itertools.count():
                item = _guarded(lambda: next(iterator, guarded), f"item {number} of {self}")
                if item is guarded:
                    return
                yield item

        return guarded()


def _guarded(call: Callable[[], T], what: str) -> T:
    """What ``call`` returns; whatever is raised there is one line about ``what``."""
    try:
        return call()
    except (MrecgError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{what}: reading it failed with {type(error).__name__}: {first_line(error)}") from error


# --- items -------------------------------------------------------------------------------------------------------------------


def is_path(value: object) -> bool:
    """Whether it is a path."""
    return isinstance(value, str | os.PathLike)


def image_like(value: object) -> bool:
    """Whether it is an image that is preprocessed: PIL's, or a path."""
    return isinstance(value, Image.Image) or is_path(value)


def parts(item: Any) -> tuple[Any, Any]:
    """Inputs and target of an item, the target None without one: two in a tuple or list are a pair, one alone is the inputs."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, tuple | list) and len(item) == 1:
        return item[0], None
    return item, None


def _of_images(item: object) -> bool:
    inputs, _ = parts(item)
    if isinstance(inputs, Mapping):
        others = [value for name, value in inputs.items() if name not in LABEL_NAMES]
        return any(isinstance(_lone(value), Image.Image) for value in others) or (
            len(others) == 1 and image_like(_lone(others[0]))
        )
    return image_like(_lone(inputs))


def _lone(value: Any) -> Any:
    """The first of a batch in a list."""
    return value[0] if isinstance(value, list | tuple) and value else value


# --- what it is recognised by ------------------------------------------------------------------------------------------------


def _name(source: object) -> str:
    return f"the {type(source).__name__}"


def _sized(source: object) -> bool:
    return _length(source) is not None and hasattr(source, "__getitem__")


def _length(source: object) -> int | None:
    """How many items it says it has; classes may have the method and refuse to tell."""
    try:
        return len(source)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - NotImplementedError, TypeError, AttributeError: each library has its own
        return None


def _torch_stream(source: object) -> bool:
    """Whether it is an IterableDataset of torch, which has a method for places only because its base class has one."""
    torch = sys.modules.get("torch.utils.data")
    return torch is not None and isinstance(source, torch.IterableDataset)


def _is_pair_of_arrays(source: object) -> bool:
    """Whether it is (inputs, targets) of all samples: two arrays of as many rows, the second one of another shape or flat.

    Labels are that too where there are more or fewer of them than inputs: whoever reads them says so.
    """
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    inputs, targets = source
    if isinstance(inputs, Mapping):
        inputs = next(iter(inputs.values()), None)
    if not has_array(inputs) or _length(inputs) is None:
        return False
    if _length(inputs) != _length(targets):
        return _can_only_be_labels(targets, inputs)
    shapes: list[Any] = [getattr(values, "shape", ()) for values in (inputs, targets)]
    return len(shapes[1]) <= 2 or tuple(shapes[0]) != tuple(shapes[1])


def _can_only_be_labels(values: Any, inputs: Any) -> bool:
    """Whether what stands beside ``inputs`` is no sample and no batch of their network: these have as many axes, or one less."""
    axes = len(getattr(inputs, "shape", ()))
    if not has_array(values):
        return isinstance(values, list | tuple) and len(values) > 0 and all(isinstance(x, int | str) for x in values)
    fewer = axes - len(getattr(values, "shape", ()))
    kinds = [str(getattr(one, "dtype", "")).rpartition(".")[2][:3] for one in (inputs, values)]
    return fewer > 1 or (fewer == 1 and kinds[0] in _FLOATS and kinds[1] in _WHOLE)


def _of_pair(source: Any) -> Given:
    inputs, targets = source
    arrays = inputs if isinstance(inputs, Mapping) else {None: inputs}
    return Whole("the pair of arrays", arrays, targets)


def _of_mapping(source: Mapping[str, Any]) -> Given:
    """Arrays by name; or columns of another kind, such as lists of images."""
    columns = {name: value for name, value in source.items() if name not in LABEL_NAMES}
    if not all(has_array(value) for value in columns.values()) and all(map(_sized, source.values())):
        return Indexed(_name(source), _Columns(source))
    return Whole(_name(source), dict(source))


class _Columns:
    """Columns of one length as samples."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = columns
        counts = {name: len(column) for name, column in columns.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"'{name}' {count}" for name, count in counts.items())
            raise DataError(
                f"the columns have different numbers of samples ({told}): give one length, or one split of a data set"
            )

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}


def _of_reader(source: CalibrationReader) -> Given:
    rewind = getattr(source, "rewind", None)

    def begin() -> Iterator[Any]:
        if callable(rewind):
            rewind()
        return iter(source.get_next, None)

    return Stream(_name(source), begin, again=callable(rewind))


def _of_iterable(source: Iterable[Any]) -> Given:
    """An iterator is its own beginning, and has no other one."""
    return Stream(_name(source), lambda: iter(source), again=not isinstance(source, Iterator), hint=_length(source))


def _of_function(source: Callable[[], Iterable[Any]]) -> Given:
    name = getattr(source, "__name__", type(source).__name__)
    return Stream(f"the function {name}", lambda: iter(source()), again=True)


#: Beginnings of the names of types, NumPy's and torch's.
_FLOATS, _WHOLE = ("flo", "bfl"), ("int", "uin", "boo")


class Kind(NamedTuple):
    """What may be handed over: what it is recognised by, and the form that it has."""

    name: str
    recognised: Callable[[Any], bool]
    form: Callable[[Any], Given]


#: The first one that recognises an object reads it.
KINDS: Sequence[Kind] = (
    Kind("an image", lambda s: isinstance(s, Image.Image), lambda s: Indexed("the image", [s])),
    Kind("a dict by input name", lambda s: isinstance(s, Mapping), _of_mapping),
    Kind("a pair of arrays (inputs, labels)", _is_pair_of_arrays, _of_pair),
    Kind("an array or a tensor", has_array, lambda s: Whole(_name(s), {None: s})),
    Kind("a CalibrationDataReader", lambda s: callable(getattr(s, "get_next", None)), _of_reader),
    Kind("an IterableDataset of torch", _torch_stream, _of_iterable),
    Kind("a list or a data set", _sized, lambda s: Indexed(_name(s), s)),
    Kind("an iterable", lambda s: isinstance(s, Iterable), _of_iterable),
    Kind("a function that makes an iterable", callable, _of_function),
)

#: What :func:`given` makes of data.
Source: TypeAlias = "str | Path | Dataset | Given"


def given(source: Data) -> Source:
    """Data as they were given, recognised: paths and open data sets stay what they are, and so does what was recognised before.

    Args:
        source: see :data:`Data`. Nothing of it is read here.

    Raises:
        DataError: it is nothing that data are taken from.
    """
    if isinstance(source, str | Path | Dataset | Given):
        return source
    if isinstance(source, os.PathLike):
        return Path(source)
    # Bytes are a sequence of numbers, and nobody means that; a class can be called, and makes no images.
    odd = isinstance(source, bytes | bytearray | memoryview | type)
    kind = None if odd else next((kind for kind in KINDS if kind.recognised(source)), None)
    if kind is None:
        raise DataError(
            f"data of type {type(source).__name__} are not known: give a path, {', '.join(kind.name for kind in KINDS)} "
            "(docs/data.md)"
        )
    return kind.form(source)

"""Targets that lie beside image files, boxes or masks: found by the image's name, and brought to where its pixels go."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data.pixels import Geometry, UnreadableError, geometry_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mrecg_onnx.data.preprocess import Preprocess

__all__ = ["Targets", "by_name"]

E = TypeVar("E")


class Targets(Sequence[Any], ABC):
    """What outputs for image files are held against, one for each file, made when it is asked for.

    Args:
        files: the images.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)
        self._places = np.arange(len(self._files))
        self._preprocess: Preprocess | None = None

    def picked(self, places: NDArray[np.int64], preprocess: Preprocess) -> Targets:
        """Those of the files at ``places``, for images prepared by the resolved ``preprocess``."""
        part = self[:]
        part._places, part._preprocess = self._places[places], preprocess  # noqa: SLF001 - its own class
        return part

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with what was chosen, in hexadecimal."""

    @abstractmethod
    def _made(self, place: int, geometry: Geometry) -> Any:
        """The target of a file whose pixels go where ``geometry`` says."""

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Targets: ...
    def __getitem__(self, index: int | slice) -> Any:
        """A target, or some of them.

        Raises:
            DataError: the image or its target cannot be read, or they do not belong together.
        """
        if isinstance(index, slice):
            part = copy.copy(self)
            part._places = self._places[index]  # noqa: SLF001 - its own class
            return part
        place = int(self._places[index])
        assert self._preprocess is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of sizes that are looked at here
            try:
                geometry = geometry_of(self._files[place], self._preprocess)
            except UnreadableError as error:
                raise DataError(f"{self._files[place]} cannot be read: {error}") from error
            return self._made(place, geometry)


def by_name(files: Sequence[Path], root: Path, named: Iterable[tuple[Path, E]], missing: str, where: Path) -> list[E]:
    """What belongs to each file: by its path below ``root``, by as much of its path as a name has, or by its bare name.

    Args:
        files: the images.
        root: the folder that they lie in.
        named: names, relative, and what they name.
        missing: what to do for a file without, for messages.
        where: what has the names, for messages.

    Raises:
        DataError: a file has none, or its bare name names several.
    """
    whole: dict[str, E] = {}
    bare: dict[str, list[tuple[Path, E]]] = {}
    for name, one in named:
        whole.setdefault(name.as_posix(), one)
        bare.setdefault(name.name, []).append((name, one))
    relative = [file.relative_to(root) for file in files]
    shared: dict[str, int] = {}
    for file in relative:
        shared[file.name] = shared.get(file.name, 0) + 1
    found = []
    for file in relative:
        entry, others = whole.get(file.as_posix()), bare.get(file.name, [])
        if entry is None and not others:
            raise DataError(f"{where} has nothing for {file.as_posix()}: {missing}")
        if entry is None:  # names with the folders above the one that was given, as for a part of the data
            there = (Path.cwd() / root / file).parts
            with_folders = [
                one for name, one in others if len(name.parts) > 1 and there[-len(name.parts) :] == name.parts
            ]
            entry = with_folders[0] if len(with_folders) == 1 else None
        if entry is None and (len(others) > 1 or shared[file.name] > 1):
            raise DataError(f"{where}: several files are called {file.name}: name them with the folder they lie in")
        found.append(others[0][1] if entry is None else entry)
    return found

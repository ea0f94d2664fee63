"""Image files as the model's inputs, decoded by a few threads when they are asked for."""

from __future__ import annotations

import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data.dataset import Dataset, check_lost, digest, lost_text
from mrecg_onnx.data.decoding import Room
from mrecg_onnx.data.kept_pixels import KeptPixels
from mrecg_onnx.data.pixels import UnreadableError, needed_bytes, planes, read_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mrecg_onnx.data.inputs import InputSpec
    from mrecg_onnx.data.preprocess import Preprocess

__all__ = ["ImageDataset"]

logger = logging.getLogger(__name__)

#: Pillow decodes outside the GIL; order, hence the result, does not depend on it.
_DECODERS = min(4, os.cpu_count() or 1)


class ImageDataset(Dataset):
    """Image files, decoded on demand by a few threads.

    Args:
        spec: the model's input.
        files: the images.
        labels: one for each, or None.
        preprocess: what is done to them.
        kept: where prepared images stay for the next pass; None where one is made.

    Attributes:
        resolved: ``preprocess`` with all that the model decides.
    """

    def __init__(
        self,
        spec: InputSpec,
        files: list[Path],
        labels: NDArray[np.int64] | None,
        preprocess: Preprocess,
        kept: KeptPixels | None = None,
    ) -> None:
        resolved = preprocess.resolve(spec)
        super().__init__([spec], files=files, labels=labels, preprocess=resolved)
        self.resolved = resolved
        self._paths = files
        self._table = resolved.table(spec.dtype)
        self._room, self._kept = Room(), kept

    def __len__(self) -> int:
        return len(self._paths)

    def _share(self, rank: int, size: int) -> Dataset:
        labels = self.labels[rank::size] if self.labels is not None else None
        part = ImageDataset(self.inputs[0], self._paths[rank::size], labels, self.resolved, self._kept)
        part.labels_source, part._room = self.labels_source, self._room
        return part

    def fingerprint(self) -> str:
        """Of the files and of what is done to them."""
        return digest(self._paths, repr(self.resolved))

    def decode_within(self, most: int) -> tuple[int, str]:
        """Decode in ``most`` bytes of memory, all threads together; only the files' headers are read here.

        Returns:
            The bytes that the largest image takes alone, and which it is, for messages.
        """
        self._room.most = most
        largest, name = 0, ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for path in self._paths:
                try:
                    needed, (width, height) = needed_bytes(path, self.resolved)
                except UnreadableError:
                    continue  # it is named when it is read
                if needed > largest:
                    largest, name = needed, f"{path} of {width}x{height} pixels"
        return largest, name

    def _read(self, indices: Sequence[int]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        wanted = [index for index in indices if index not in self._lost]
        paths = [self._paths[index] for index in wanted]
        # Pillow's warnings about odd metadata are not for the user: either the pixels are there or the file is named.
        with warnings.catch_warnings(), ThreadPoolExecutor(_DECODERS) as pool:
            warnings.simplefilter("ignore")
            samples = list(pool.map(self._sample, paths))
        good: list[NDArray[Any]] = []
        kept: list[int] = []
        for index, sample in zip(wanted, samples, strict=True):
            if isinstance(sample, str):
                self._lose(index, sample)
            else:
                good.append(sample)
                kept.append(index)
        return ({self.inputs[0].name: np.stack(good)} if good else {}), kept

    def _sample(self, path: Path) -> NDArray[Any] | str:
        """One image as the model takes it, without the batch axis; or why it cannot be read."""
        pixels = self._kept.get(path) if self._kept is not None else None
        if pixels is None:
            try:
                pixels = read_pixels(path, self.resolved, self._room)
            except UnreadableError as error:
                return str(error)
            except MemoryError as error:
                raise DataError(
                    f"{path}: memory does not hold the image while it is decoded: make it smaller"
                ) from error
            if self._kept is not None:
                self._kept.put(path, pixels)
        return planes(pixels, self._table, self.resolved.layout)

    def _lose(self, index: int, reason: str) -> None:
        """Note an unreadable file; stop as soon as the 5 % are certain rather than after reading all the others."""
        if index in self._lost:  # asked for twice in one batch
            return
        self._lost[index] = reason
        logger.info("skipped %s: %s", self._paths[index], reason)
        check_lost([lost_text(item) for item in self.skipped], self.whole)

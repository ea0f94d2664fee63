"""Data handed over in Python, for cells that run in processes of their own: written to files that they read."""

from __future__ import annotations

import shutil
import weakref
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx

from mrecg_onnx.converters import load_model, save_model
from mrecg_onnx.converters.errors import DataError, ExportError
from mrecg_onnx.converters.files import move_whole, temporary_folder
from mrecg_onnx.converters.load import model_path
from mrecg_onnx.converters.save import digest
from mrecg_onnx.data import Frozen, Given, freeze, given

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrecg_onnx.data import Data, InputSpec, Labels
    from mrecg_onnx.settings import Settings

__all__ = ["Files", "Handed", "told"]

#: What a cell's process opens: a path, or files with their labels.
Files: TypeAlias = "str | Path | list[Any]"
CALIBRATION, VALIDATION, MODEL = "calibration", "validation", "model"
#: A model that was handed over, in the folder that is written for it: the files of cells are called by it.
MODEL_FILE = "model.onnx"


def told(files: Files) -> str:
    """How tables and messages call data."""
    return f"{len(files)} listed files" if isinstance(files, list) else str(files)


@dataclass
class Handed:
    """What was written, in a temporary folder until the folder of the comparison is known to be ours.

    Attributes:
        digests: of what was handed over, by its part in the comparison; files that were named have none.
    """

    digests: dict[str, str] = field(default_factory=dict)
    _made: dict[str, Frozen] = field(default_factory=dict)
    _folder: Path | None = None

    def calibration(self, source: Data, specs: Sequence[InputSpec], settings: Settings) -> Files:
        """Calibration data as files.

        Raises:
            DataError: they do not do.
        """
        taken = given(source)
        if not isinstance(taken, Given):
            return _path(taken)
        samples = settings.most_images
        made = freeze(
            taken, specs, settings.preprocess, self._temporary(), CALIBRATION, samples=samples, seed=settings.seed
        )
        return self._keep(CALIBRATION, made)

    def model(self, source: onnx.ModelProto | str | Path) -> Path:
        """The model as a file.

        Raises:
            ModelError: it is none, or damaged.
        """
        if not isinstance(source, onnx.ModelProto):
            return model_path(source)
        loaded = load_model(source)
        folder = self._temporary() / MODEL
        folder.mkdir()
        save_model(loaded, folder / MODEL_FILE)
        self._keep(MODEL, Frozen(folder, None, digest(loaded)))
        return folder / MODEL_FILE

    def validation(
        self, source: Data, specs: Sequence[InputSpec], settings: Settings, labels: Labels | None, limit: int | None
    ) -> tuple[Files, Labels | None]:
        """Validation data as files, and their labels.

        Raises:
            DataError: they do not do.
        """
        taken = given(source)
        if not isinstance(taken, Given):
            return _path(taken), labels
        folder = self._temporary()
        made = freeze(
            taken, specs, settings.preprocess, folder, VALIDATION, samples=limit, labelled=True, labels=labels
        )
        return self._keep(VALIDATION, made), made.labels

    def move(self, part: str, folder: Path) -> tuple[Files, Labels | None] | None:
        """Bring what was written for a part of the comparison into ``folder``, which is ours, or find it there.

        Returns:
            Where the data and their labels lie; None where nothing was written.

        Raises:
            ExportError: the folder cannot be written.
        """
        made = self._made.get(part)
        if made is None or not isinstance(made.source, Path):
            return None
        stem = f"{part}-{made.digest[:24]}"
        try:
            folder.mkdir(exist_ok=True)
            for old in folder.glob(f"{part}-*"):  # of other data
                if not old.name.startswith(stem):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            source, *labels = (
                _moved(path, folder / path.name.replace(part, stem, 1))
                for path in (made.source, made.labels)
                if isinstance(path, Path)
            )
        except OSError as error:
            raise ExportError(f"{folder}: the data cannot be written: {error.strerror or error}") from error
        return source, labels[0] if labels else made.labels

    def _temporary(self) -> Path:
        """Gone with this object."""
        if self._folder is None:
            leaving = ExitStack()
            self._folder = leaving.enter_context(temporary_folder())
            weakref.finalize(self, leaving.close)
        return self._folder

    def _keep(self, part: str, made: Frozen) -> Files:
        self._made[part], self.digests[part] = made, made.digest
        return made.source


def _moved(source: Path, target: Path) -> Path:
    if not target.exists():
        move_whole(source, target)
    return target


def _path(source: Any) -> str | Path:
    """A path; data sets that are open live in this process alone."""
    if not isinstance(source, str | Path):
        raise DataError("an open data set lives in this process, and cells run in others: give what it was opened from")
    return source

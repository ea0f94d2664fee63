"""Preprocessing by name or from a file: what transformers and timm store beside their models, or JSON of our own.

A file is read as data that anyone may have written: its size is bounded, every value is checked, and what is in it but
cannot be done here is named. Which file is which:

* ``preprocessor_config.json`` (transformers): the ``do_*`` steps with their sizes and numbers;
* ``config.json`` of timm: the entries of its ``pretrained_cfg``, or of a data config alone;
* fields of :class:`mrecg_onnx.Preprocess`, as ``--json`` and the metadata of a quantized file have them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import SettingsError, first_line
from mrecg_onnx.converters.files import no_such
from mrecg_onnx.converters.text import bounded
from mrecg_onnx.data.entries import Entries
from mrecg_onnx.data.inputs import InputSpec
from mrecg_onnx.data.opening import holds_images
from mrecg_onnx.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, UNIT_SCALE, Preprocess
from mrecg_onnx.data.timm_config import from_timm
from mrecg_onnx.data.transformers_config import from_transformers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrecg_onnx.data.sources import Data

__all__ = ["PROFILES", "PreprocessField", "beside", "for_images", "profile", "require_numbers"]

logger = logging.getLogger(__name__)

#: Preprocessing by name.
PROFILES = {
    "imagenet": Preprocess(IMAGENET_MEAN, IMAGENET_STD, UNIT_SCALE),
    "unit": Preprocess((0.0,), (1.0,), UNIT_SCALE),
    "raw": Preprocess((0.0,), (1.0,), 1.0),
}
#: Files looked for beside a model, the first one that says something counts.
NAMES = ("preprocessor_config.json", "config.json")
#: Folder that exporters put the ONNX files of a model into, under the one with its configuration.
NESTED = "onnx"
MAX_BYTES = 4 * 10**6
"""Size of the largest file read: a timm configuration with 21,000 class names has one."""
_OWN = frozenset(Preprocess().to_json())


class PreprocessField:
    """A field of a dataclass that holds a Preprocess and takes the name of a profile or a file, too."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Preprocess:
        if instance is None:
            return Preprocess(beside=True)  # the field's default
        found: Preprocess = vars(instance)[self._name]
        return found

    def __set__(self, instance: object, value: Preprocess | str | Path) -> None:
        vars(instance)[self._name] = value if isinstance(value, Preprocess) else profile(value, self._name)


def profile(name: str | Path, field: str = "preprocess") -> Preprocess:
    """The preprocessing of a name in :data:`PROFILES`, or of a file; ``field`` is what it was given to.

    Raises:
        SettingsError: there is neither, or the file does not say how images become inputs.
    """
    if not isinstance(name, str | os.PathLike):
        raise SettingsError(
            f"{field} is {bounded(repr(name), 80)}: it takes a Preprocess, a file, or one of {', '.join(PROFILES)}"
        )
    if str(name) in PROFILES:
        return PROFILES[str(name)]
    path = Path(name)
    if not path.is_file():
        raise SettingsError(f"--preprocess {no_such(name, 'names are ' + ', '.join(PROFILES))}")
    found = _read(path)
    if found is None:
        raise SettingsError(
            f"--preprocess {name}: is no preprocessor_config.json of transformers, no config.json of timm and no object with "
            f"some of {', '.join(sorted(_OWN))}"
        )
    return found


def beside(model: object) -> Preprocess | None:
    """What a file beside ``model`` says (or beside the folder 'onnx' that it lies in); None without, and for a model in memory.

    Raises:
        SettingsError: the file cannot be used.
    """
    if not isinstance(model, str | Path):
        return None
    folder = Path(model).absolute().parent
    for place in (folder, folder.parent) if folder.name == NESTED else (folder,):
        for name in NAMES:
            path = place / name
            if not path.is_file():
                if path.exists():
                    raise SettingsError(
                        f"{path}: is no file; --preprocess imagenet|unit|raw|FILE says how images become inputs"
                    )
                continue
            try:
                found = _read(path, shown=Path(model).parent / name if place == folder else path)
            except SettingsError as error:
                raise SettingsError(f"{error}; --preprocess imagenet|unit|raw|FILE goes before that file") from error
            if found is not None:
                return found
    return None


def for_images(preprocess: Preprocess, model: object, *sources: Data | None) -> Preprocess:
    """``preprocess`` with what it does not state from a file beside ``model``, where it may be read and there are images.

    Args:
        preprocess: what is stated.
        model: the model, looked at where it is a path.
        sources: where data come from: paths, 'zeroq' (made images are images), what was handed over, None for none.

    Raises:
        SettingsError: the file cannot be used.
        DataError: a path of ``sources`` cannot be read.
    """
    if not preprocess.beside or not any(holds_images(source) for source in sources):
        return preprocess
    found = beside(model)
    return preprocess.over(found or Preprocess())


def require_numbers(preprocess: Preprocess, inputs: Sequence[InputSpec], why: str) -> None:
    """Refuse images for a model that was calibrated on arrays, unless it is said how they become the same numbers.

    Raises:
        SettingsError: mean or deviation are not stated; ``why`` says who wants to know.
    """
    if preprocess.normalizes or any(spec.dtype == "uint8" for spec in inputs):
        return
    raise SettingsError(
        f"{why}: say how images become the same numbers with --mean, --std and --scale, or --preprocess imagenet|unit|raw|FILE "
        "(or give arrays here, too)"
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(path: Path, shown: Path | None = None) -> Preprocess | None:
    """The preprocessing in a file; None where it is about something else."""
    shown = shown or path
    try:
        if path.stat().st_size > MAX_BYTES:
            _refuse(path, f"{shown}: is larger than {MAX_BYTES // 10**6} MB: no file about preprocessing is")
            return None
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        _refuse(path, f"{shown}: is no JSON file ({first_line(error)})")
        return None
    if not isinstance(data, dict):
        _refuse(path, f"{shown}: holds no object with preprocessing")
        return None
    found = _convert(Entries(data, str(shown)))
    return None if found is None else dataclasses.replace(found, source=str(shown))


def _refuse(path: Path, message: str) -> None:
    """Raise ``message``, unless the file is called config.json: other tools write such files for themselves."""
    if path.name != "config.json":
        raise SettingsError(message)
    logger.info("%s; not used", message)


def _convert(entries: Entries) -> Preprocess | None:
    """The preprocessing that is described, by whoever described it; None where it is about something else."""
    data, read = entries.data, None
    if data and set(data) <= _OWN:
        read = _own
    elif isinstance(data.get("image_processor"), dict):  # a processor_config.json of transformers
        entries, read = Entries(data["image_processor"], f"{entries.where}, image_processor"), from_transformers
    elif "pretrained_cfg" in data:
        if not isinstance(data["pretrained_cfg"], dict):
            raise entries.wrong("pretrained_cfg", "an object")
        entries, read = Entries(data["pretrained_cfg"], f"{entries.where}, pretrained_cfg"), from_timm
    elif {"do_normalize", "do_resize", "do_rescale", "image_mean"} & set(data):
        read = from_transformers
    elif {"mean", "std"} <= set(data) and {"input_size", "crop_pct", "interpolation", "architecture"} & set(data):
        read = from_timm
    if read is None:
        return None
    try:
        found = read(entries)
    except SettingsError as error:
        if str(error).startswith(entries.where):
            raise
        raise SettingsError(f"{entries.where}: {error}") from error
    entries.report_rest()
    return found


def _own(entries: Entries) -> Preprocess:
    entries.left.clear()
    for key, value in entries.data.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list) or (isinstance(one, str) and len(one) > 20):
                raise entries.wrong(key, "a plain value")
            if key in {"crop", "resize"} and isinstance(one, int):
                entries.side(key, one)
    return Preprocess(**entries.data)

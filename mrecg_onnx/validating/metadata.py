"""What a quantized file says about itself in its metadata: its preprocessing, its source and the version that made it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.metadata_keys import PREPROCESS_KEY
from mrecg_onnx.data import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnxruntime as ort

    from mrecg_onnx.running import Model

__all__ = [
    "metadata_of",
    "preprocess_of",
    "source_sha256",
    "stored_preprocess",
]

_HASH_CHUNK = 1 << 20


def source_sha256(model: Model) -> str | None:
    """The fingerprint by which a quantized file names its float model.

    Args:
        model: A file or its bytes.

    Returns:
        SHA-256 over the bytes of the ``.onnx`` file (external data not included), in hexadecimal; None for a
        ModelProto, whose serialization is not unique.
    """
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    if not isinstance(model, (str, Path)):
        return None
    digest = hashlib.sha256()
    with Path(model).open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def stored_preprocess(session: ort.InferenceSession, name: str) -> Preprocess | None:
    """How the images of the open quantized model ``name`` are prepared, by its metadata; None where they do not say.

    Raises:
        ModelError: The metadata are there and do not fit this version.
    """
    return preprocess_of(metadata_of(session), name)


def preprocess_of(metadata: Mapping[str, str], name: str) -> Preprocess | None:
    """The same of the metadata alone, also of a file that ONNX Runtime does not open.

    Raises:
        ModelError: as :func:`stored_preprocess`.
    """
    stored = metadata.get(PREPROCESS_KEY)
    if stored is None:
        return None
    try:
        return Preprocess.from_json(json.loads(stored))
    except (ValueError, RecursionError, SettingsError) as error:
        raise ModelError(f"{name}: metadata {PREPROCESS_KEY} cannot be used: {error}") from error


def metadata_of(session: ort.InferenceSession) -> dict[str, str]:
    """``metadata_props`` of an open model."""
    return dict(session.get_modelmeta().custom_metadata_map)

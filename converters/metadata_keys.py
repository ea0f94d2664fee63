"""Entries of ``metadata_props`` in which a quantized file says what it is and how it was made: JSON, unless said otherwise."""

from __future__ import annotations

__all__ = [
    "BITS_KEY",
    "CALIBRATION_KEY",
    "CHANNEL_BITS_KEY",
    "CONTAINER_KEY",
    "CUT_KEY",
    "INPUT_RANGES_KEY",
    "JUDGED_KEY",
    "PREPROCESS_KEY",
    "PROTECTED_KEY",
    "REQUIRES_KEY",
    "SETTINGS_KEY",
    "SOURCE_KEY",
    "TARGET_KEY",
    "UNITS_KEY",
    "VERSION_KEY",
    "not_ours",
]

#: The version of this package that made the file, a text: every file of :func:`mrecg_onnx.quantize` has it.
VERSION_KEY = "mrecg_onnx.version"
#: SHA-256 of the float model's file, a text (:func:`mrecg_onnx.validating.source_sha256`); where that was a file.
SOURCE_KEY = "mrecg_onnx.source_sha256"
#: Settings as they were used; container and target have entries of their own.
SETTINGS_KEY = "mrecg_onnx.settings"
#: The target's name. Files without it are for ONNX Runtime.
TARGET_KEY = "mrecg_onnx.target"
#: The container, and the opset and IR version of the ``int8`` form. Files without it are ``int8``.
CONTAINER_KEY = "mrecg_onnx.container"
#: What the file needs, a list of the fields of :class:`mrecg_onnx.targets.Requirement`. Others need nothing.
REQUIRES_KEY = "mrecg_onnx.requires"
#: Width of every quantized tensor, weights by initializer name.
BITS_KEY = "mrecg_onnx.bits"
#: Widths a channel, of tensors that have them.
CHANNEL_BITS_KEY = "mrecg_onnx.channel_bits"
#: Names of the layers of every unit.
UNITS_KEY = "mrecg_onnx.units"
#: Activations raised to 8 bits.
PROTECTED_KEY = "mrecg_onnx.protected"
#: How calibration images were prepared, the fields of a :class:`mrecg_onnx.Preprocess`; files calibrated on arrays have none.
PREPROCESS_KEY = "mrecg_onnx.preprocess"
#: Smallest and largest calibration value of each input, by its name.
INPUT_RANGES_KEY = "mrecg_onnx.input_ranges"
#: How calibration images were made, where nobody gave any.
CALIBRATION_KEY = "mrecg_onnx.calibration"
#: Where the model was cut for what has no row an image: the first ``node`` behind, and the tensors ``at`` which it was cut.
CUT_KEY = "mrecg_onnx.cut"
#: What the widths were searched by (``max_drop``): the ``name`` of the metric, ``percent`` and ``lower_is_better`` as
#: :class:`mrecg_onnx.Metric` has them, what the ``fp32`` model and the ``quantized`` one are worth, and on how many ``images``.
JUDGED_KEY = "mrecg_onnx.judged"


def not_ours(where: str) -> str:
    """What to say of a file without :data:`VERSION_KEY`, a float model most of the time."""
    said = f"{where}: was not written by mrecg-onnx quantize (no {VERSION_KEY} in its metadata)"
    return f"{said}; of a float model that makes one: mrecg-onnx quantize MODEL --calib IMAGES"

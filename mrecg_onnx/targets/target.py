"""Where a quantized file is meant to run: each target is a file of rules that can be read, copied and passed by its path.

The files lie in ``mrecg_onnx/targets/rules/``; docs/deployment.md says where each rule comes from.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrecg_onnx.converters.errors import SettingsError, first_line
from mrecg_onnx.converters.files import read_small
from mrecg_onnx.converters.text import bounded, did_you_mean, first_of, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CONTAINER_NAMES", "LOW_BIT_OPSET", "TARGET_NAMES", "Target", "load_target"]

#: Rows of :data:`mrecg_onnx.writing.containers.CONTAINERS`; here, because help pages do not wait for onnx.
CONTAINER_NAMES = ("int8", "packed", "typed", "qonnx")
#: The targets that come with the package.
TARGET_NAMES = ("ort", "openvino", "tensorrt", "qnn", "portable", "qonnx")
#: The opset that brought 4-bit types and 16-bit codes.
LOW_BIT_OPSET = 21
_FOLDER = Path(__file__).parent / "rules"
#: What the container of Quant nodes can be made from.
_QUANT_NODES = {"bounds": "width", "stored_weights": "values", "dequantizers": "shared"}
_CHOICES = {
    "activation": ("uint8", "int8"),
    "full_bounds": ("none", "float"),
    "zero_point": ("any", "zero", "by-sign"),
    "bounds": ("codes", "float", "pair", "either", "width"),
    "bias": ("int32", "float"),
    "float_layers": ("channel-scales", "one-scale"),
    "branches": ("leaky-relu", "plain", "direct"),
    "add_operands": ("plain", "pooled", "residual"),
    "layer_outputs": ("quantized", "float"),
    "attributes": ("given", "stated"),
    "dequantizers": ("own", "shared"),
    "moved_values": ("quantized", "plain"),
    "weights": ("any", "symmetric"),
    "typed_weights": ("any", "zero"),
    "stored_weights": ("codes", "values"),
    "runtime": ("onnxruntime", "openvino", "qonnx", "none"),
}


@dataclass(frozen=True)
class Target:
    """The rules of one target.

    Attributes:
        name: how it was asked for.
        summary: what it is.
        opset: lowest and highest opset; a float model above is stamped down where no node in it is new, else refused when it is
            loaded; one below is raised.
        containers: how codes may be stored, rows of :data:`mrecg_onnx.writing.containers.CONTAINERS`.
        integer_ops: ops besides weighted layers whose inputs are quantized.
        activation: type of activation codes, "uint8" or "int8".
        zero_point: "any", or "zero": activation codes are symmetric. Widths up to 7 bits then lie around 0 as they are; 8-bit
            grids are calibrated for it. "by-sign": grids are calibrated from 0 on, or around 0 where values have both signs,
            whose codes are then int8; a file that was calibrated otherwise keeps its zero points.
        bounds: how the range of codes narrower than 8 bits is written: "codes", an integer Clip behind QuantizeLinear,
            "float", a Clip of the values in front of it, "pair", that Clip between quantizers of its own: a layer is then
            followed by its quantizer, without which QNN runs it in float, "either": a Clip of the values, and of codes where
            channels have bounds of their own, or "width", an integer Clip to all that the width has, and other bounds in front.
        full_bounds: what bounds codes of 8 bits that a convolution makes: "none" but their type, or "float", a Clip of the values
            to the ends of the type, too, which keeps OpenCV from integer kernels that compute the last positions wrong.
        bias: "int32" behind a DequantizeLinear, or "float".
        float_layers: what a layer with a float weight or bias reads: "channel-scales" keeps ONNX Runtime from quantizing it on
            its own, "one-scale" is the plain form.
        branches: how a tensor with two quantizers reaches the second: "leaky-relu", through LeakyRelu with slope 1, which returns
            its input and has an integer kernel in ONNX Runtime, "plain", which keeps one behind a pool in float, or "direct".
        add_operands: what an Add alone reads of a convolution: "plain", or "pooled", codes behind a MaxPool of one code,
            which keeps OpenVINO from fusing the two and leaving the rounding in between out. "residual": the operand that comes
            straight from a weighted layer is not quantized, so that TensorRT computes the sum in the layer's kernel; of two such
            operands it is the one with more layers in front of it, the other being the shortcut.
        layer_outputs: what a weighted layer writes that only float ops read: "quantized", without which ONNX Runtime runs the
            layer in float, or "float".
        attributes: of convolutions and pools: those that are "given", or all "stated", defaults too.
        dequantizers: what reads dequantized values has a DequantizeLinear of its "own", or the readers have a "shared" one.
        moved_values: what ops that only move values make of a quantized tensor is "quantized" again on the same grid, or "plain".
        weights: "any": codes of up to 7 bits have a zero point a channel, which the stored ones are shifted by; "symmetric": they
            are quantized around 0 unless the user says otherwise.
        typed_weights: zero points of weights in 4-bit types: "any", or "zero": codes that need another one stay in int8.
        stored_weights: "codes" behind DequantizeLinear, or "values" in front of QuantizeLinear, Clip and DequantizeLinear.
        wbits: narrowest and widest weights.
        abits: narrowest and widest activations whose codes lie in 8-bit tensors.
        wide_abits: further widths of activations: [16] for uint16, which needs opset 21 and bounds other than "codes", or [].
        runtime: what opens the file after the export: "onnxruntime", "openvino", "qonnx" or "none", where nothing does on a CPU.
    """

    name: str
    summary: str
    opset: tuple[int, int]
    containers: tuple[str, ...]
    integer_ops: tuple[str, ...]
    activation: str
    zero_point: str
    bounds: str
    full_bounds: str
    bias: str
    float_layers: str
    branches: str
    add_operands: str
    layer_outputs: str
    attributes: str
    dequantizers: str
    moved_values: str
    weights: str
    typed_weights: str
    stored_weights: str
    wbits: tuple[int, int]
    abits: tuple[int, int]
    wide_abits: tuple[int, ...]
    runtime: str

    @property
    def symmetric(self) -> bool:
        """Whether activations are calibrated around 0: those of 8 bits, or of all widths."""
        return self.zero_point != "any"

    def check_widths(self, wbits: int, abits: int, where: str) -> None:
        """Refuse widths outside the rules; 32 is float and always allowed.

        Raises:
            SettingsError: they are.
        """
        for kind, width, (low, high), further in (
            ("weights", wbits, self.wbits, ()),
            ("activations", abits, self.abits, self.wide_abits),
        ):
            if width != 32 and not low <= width <= high and width not in further:
                allowed = "".join((f"{low} to {high}", *(f" and {wide}" for wide in further)))
                raise SettingsError(
                    f"target {self.name}: {where} asks for {width}-bit {kind}; its rules allow {allowed}"
                    f"{_elsewhere(width) if kind == 'activations' else ''}"
                )


def _elsewhere(abits: int) -> str:
    """The targets that have activations of ``abits`` bits beyond a byte."""
    names = [name for name in TARGET_NAMES if abits in load_target(name).wide_abits]
    return f"; target {' or '.join(names)} has {abits}" if names else ""


def load_target(name: str) -> Target:
    """The target called ``name``, or the rules in the file of that path.

    Raises:
        SettingsError: there is no such target or file, or the file breaks the form of the rules.
    """
    path = _FOLDER / f"{name}.toml" if name in TARGET_NAMES else Path(name)
    if not path.is_file():
        lite = name.lower() in {"tflite", "litert"}
        hint = (
            ": `mrecg-onnx convert FILE --to tflite` makes files for phones"
            if lite
            else did_you_mean(name, TARGET_NAMES)
        )
        raise SettingsError(f"target '{name}' is neither {', '.join(TARGET_NAMES)} nor an existing file of rules{hint}")
    try:
        rules: dict[str, Any] = tomllib.loads(read_small(path))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # not UTF-8, not TOML, a number without end, nested without end
        raise SettingsError(f"target {path}: cannot be read as TOML: {first_line(error)}") from error
    return _checked(path.stem, path, rules)


def _checked(name: str, path: Path, rules: dict[str, Any]) -> Target:
    expected = {field.name for field in dataclasses.fields(Target)} - {"name"}
    for what, names in (("lacks", expected - set(rules)), ("has the unknown rule", set(rules) - expected)):
        if names:
            raise SettingsError(
                f"target {path}: {what} {first_of(sorted(names))}; mrecg_onnx/targets/rules/ort.toml shows the form"
            )
    for rule, allowed in _CHOICES.items():
        if rules[rule] not in allowed:
            raise SettingsError.among(f"target {path}: {rule} is {bounded(repr(rules[rule]), 60)}", allowed)
    if not isinstance(rules["summary"], str):
        raise SettingsError(f"target {path}: summary is {rules['summary']!r}: expected a text")
    for rule, (least, most) in {"opset": (13, 25), "wbits": (2, 8), "abits": (2, 8)}.items():
        pair = rules[rule]
        fits = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not fits or not least <= pair[0] <= pair[1] <= most:
            raise SettingsError(
                f"target {path}: {rule} is {bounded(repr(pair), 60)}: expected [lowest, highest] within {least} and {most}"
            )
    for rule, known in {"containers": CONTAINER_NAMES, "integer_ops": None}.items():
        entries = rules[rule]
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise SettingsError(f"target {path}: {rule} is {bounded(repr(entries), 60)}: expected a list of names")
        wrong = [entry for entry in entries if known is not None and entry not in known]
        if wrong:
            raise SettingsError.among(
                f"target {path}: {rule} has the unknown {quoted(wrong[0])}", known or (), wrong[0]
            )
        if len(set(entries)) < len(entries) or (known is not None and not entries):
            raise SettingsError(f"target {path}: {rule} {'names one twice' if entries else 'is empty'}: name each once")
    if rules["opset"][1] < LOW_BIT_OPSET and not set(rules["containers"]) <= {"int8", "qonnx"}:
        raise SettingsError(
            f"target {path}: containers {rules['containers']!r} hold types of opset {LOW_BIT_OPSET}, opset is {rules['opset']!r}"
        )
    _check_codes(path, rules)
    values: dict[str, Any] = {rule: tuple(value) if isinstance(value, list) else value for rule, value in rules.items()}
    return Target(name=name, **values)


def _check_codes(path: Path, rules: dict[str, Any]) -> None:
    """Refuse types and bounds of activation codes that do not go together."""
    if not isinstance(rules["wide_abits"], list) or rules["wide_abits"] not in ([], [16]):
        raise SettingsError(f"target {path}: wide_abits is {rules['wide_abits']!r}: expected [] or [16]")
    wide = rules["activation"] == "uint8" and rules["bounds"] != "codes" and rules["opset"][1] >= LOW_BIT_OPSET
    if rules["wide_abits"] and not wide:
        raise SettingsError(
            f"target {path}: wide_abits [16] needs uint8 activations, bounds 'float' or 'pair' and opset 21 or later"
        )
    if rules["full_bounds"] == "float" and rules["bounds"] != "float":
        raise SettingsError(f"target {path}: full_bounds 'float' needs bounds 'float'")
    _check_zero_points(path, rules)


def _check_zero_points(path: Path, rules: dict[str, Any]) -> None:
    """Refuse zero points that the types of codes, and a container that the other rules, do not allow."""
    if rules["activation"] == "int8" and (rules["zero_point"], rules["bounds"]) != ("zero", "float"):
        raise SettingsError(f"target {path}: int8 activations need zero_point 'zero' and bounds 'float'")
    if rules["zero_point"] == "by-sign" and (rules["activation"], rules["bounds"]) != ("uint8", "width"):
        raise SettingsError(f"target {path}: zero_point 'by-sign' needs uint8 activations and bounds 'width'")
    if "qonnx" in rules["containers"] and any(rules[rule] != value for rule, value in _QUANT_NODES.items()):
        needs = ", ".join(f"{rule} '{value}'" for rule, value in _QUANT_NODES.items())
        raise SettingsError(f"target {path}: the container qonnx needs {needs}")
    if rules["zero_point"] == "zero" and rules["activation"] != "int8":
        raise SettingsError(f"target {path}: zero_point 'zero' needs int8 activations")

"""Damaged and odd models, as cases of hostile input: what they are made of and what is done to them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from helpers.hostile import Arguments, Case
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Damage = Callable[[onnx.ModelProto], object]

#: What text becomes that is not UTF-8: as long as the name that it stands for.
_BYTES = b"\xff\xfe\x80"


# --- what models are made of -----------------------------------------------------------------------------------------


def value(name: str, shape: list[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def plain() -> onnx.ModelProto:
    """Two convolutions with a Relu between them; weights ``w`` and ``v``, inputs ``x``, outputs ``y``."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((4, 3, 1, 1)),
        "v": rng.standard_normal((2, 4, 1, 1)),
        "b": rng.standard_normal(2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", group=1),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v", "b"], ["y"], "second"),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [value("x", ["N", 3, 4, 4])], [value("y", ["N", 2, 4, 4])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def calling() -> onnx.ModelProto:
    """The same with a local function for the Relu, which has an attribute."""
    model = plain()
    node = helper.make_node("LeakyRelu", ["in"], ["out"], "leaky")
    node.attribute.add(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Act", ["in"], ["out"], [node], imports, ["alpha"]))
    model.opset_import.add(domain="local", version=1)
    model.graph.node[1].CopyFrom(helper.make_node("Act", ["a"], ["r"], "relu", domain="local", alpha=0.5))
    return model


def nested(levels: int) -> bytes:
    """If in If in If, as bytes: protobuf does not even write more than a hundred."""

    def message(field: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([field << 3 | 2]) + length + bytes([size]) + content

    inner = message(2, b"g")
    for _ in range(levels):
        attribute = message(1, b"then_branch") + message(6, inner)
        inner = message(1, message(4, b"If") + message(5, attribute)) + message(2, b"g")
    return b"\x08\x08" + message(7, inner) + message(8, b"\x10\x11")


@cache
def _quantized() -> bytes:
    import mrecg_onnx

    arrays = {"x": np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "x.npz", **arrays)
        settings = mrecg_onnx.Settings(method="nearest", equalize="off", threads=1)
        return mrecg_onnx.quantize(plain(), Path(folder) / "x.npz", settings).model.SerializeToString()


# --- kinds of cases --------------------------------------------------------------------------------------------------


def broken(name: str, damage: Damage, *says: str, build: Callable[[], onnx.ModelProto] = plain, **more: Any) -> Case:
    """``inspect`` of a model after ``damage``."""

    def make(folder: Path) -> Arguments:
        model = build()
        damage(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return "inspect", "model.onnx"

    return Case(name, make, says=("model.onnx", *says), cpu_s=2, **more)


def raw(name: str, content: Callable[[], bytes], *says: str, **more: Any) -> Case:
    """``inspect`` of a file of these bytes."""

    def make(folder: Path) -> Arguments:
        (folder / "model.onnx").write_bytes(content())
        return "inspect", "model.onnx"

    return Case(name, make, says=("model.onnx", *says), cpu_s=2, **more)


def not_text(
    name: str, put: Callable[[onnx.ModelProto, str], object], *says: str, build: Callable[[], onnx.ModelProto] = plain
) -> Case:
    """``inspect`` of a model where what ``put`` writes is not UTF-8 in the file."""

    def content() -> bytes:
        model = build()
        put(model, "QZX")
        return model.SerializeToString().replace(b"QZX", _BYTES)

    return raw(name, content, *says)


def outside(name: str, entries: dict[str, str], *says: str, **more: Any) -> Case:
    """``inspect`` of a model whose weight ``w`` (48 bytes) is said to be elsewhere; ``w.data`` has it."""

    def make(folder: Path) -> Arguments:
        model = plain()
        tensor = model.graph.initializer[0]
        (folder / "w.data").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return "inspect", "model.onnx"

    return Case(name, make, says=("model.onnx", *says), cpu_s=2, **more)


def changed(
    name: str,
    damage: Damage,
    *says: str,
    arguments: tuple[str, ...] = ("convert", "model.onnx", "--container", "packed", "-o", "out.onnx"),
) -> Case:
    """A command on a quantized file after ``damage``."""

    def make(folder: Path) -> Arguments:
        model = onnx.ModelProto.FromString(_quantized())
        damage(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return arguments

    return Case(name, make, says=("model.onnx", *says), cpu_s=3)


def metadata(key: str, value: str) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != key]
        helper.set_model_props(model, dict([*kept, (key, value)]))

    return damage


def tensor(**fields: Any) -> Damage:
    """Fields of the first weight."""

    def damage(model: onnx.ModelProto) -> None:
        found = model.graph.initializer[0]
        for name, value in fields.items():
            if isinstance(value, list):
                found.ClearField(name)
                getattr(found, name).extend(value)
            else:
                setattr(found, name, value)

    return damage


def segment(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.end = 1


def attribute(node: int = 0, **fields: Any) -> Damage:
    """An attribute that a node gets beside its own."""

    def damage(model: onnx.ModelProto) -> None:
        model.graph.node[node].attribute.add(**fields)

    return damage


def size(value: int, axis: int = 0, *, output: bool = False) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        values = model.graph.output if output else model.graph.input
        values[0].type.tensor_type.shape.dim[axis].dim_value = value

    return damage


def call(**fields: Any) -> Damage:
    """Fields of the node that calls the function."""

    def damage(model: onnx.ModelProto) -> None:
        node = model.graph.node[1]
        for name, value in fields.items():
            getattr(node, name).append(value)

    return damage


def opset(version: int, domain: str = "") -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        model.opset_import.add(domain=domain, version=version)

    return damage


def only_opset(version: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return damage


def node(index: int, **fields: Any) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                model.graph.node[index].ClearField(name)
                getattr(model.graph.node[index], name).extend(value)
            else:
                setattr(model.graph.node[index], name, value)

    return damage


def weight(array: Any, name: str = "w") -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        for found in model.graph.initializer:
            if found.name == name:
                found.CopyFrom(numpy_helper.from_array(np.asarray(array, np.float32), name))

    return damage


def sparse(dims: list[int], indices: list[int]) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        found = model.graph.sparse_initializer.add()
        found.dims.extend(dims)
        found.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0]))
        found.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [2], indices))

    return damage


def kernel_too_large(model: onnx.ModelProto) -> None:
    """A pool larger than what it reads, and a Slice behind it."""
    model.graph.node[1].CopyFrom(helper.make_node("MaxPool", ["a"], ["p"], "pool", kernel_shape=[9, 9]))
    model.graph.node.insert(2, helper.make_node("Slice", ["p", "zero", "one", "axis"], ["r"], "cut"))
    for name, number in (("zero", 0), ("one", 1), ("axis", 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))


def disguised(model: onnx.ModelProto) -> None:
    """Names that would colour, clear and turn round what a terminal shows."""
    for held in model.graph.node:
        held.name = f"\x1b[2J\x1b[31m{held.name}\u202e\n"
    model.graph.node[0].op_type = "\x1b]0;title\x07Conv"


def itself(folder: Path) -> Arguments:
    (folder / "model.onnx").symlink_to("model.onnx")
    return "inspect", "model.onnx"


def dangling(folder: Path) -> Arguments:
    (folder / "model.onnx").symlink_to("nothing.onnx")
    return "inspect", "model.onnx"


def in_a_file(folder: Path) -> Arguments:
    (folder / "file").write_bytes(b"")
    return "inspect", "file/model.onnx"


def pipe(folder: Path) -> Arguments:
    os.mkfifo(folder / "model.onnx")
    return "inspect", "model.onnx"


def a_folder(folder: Path) -> Arguments:
    (folder / "model.onnx").mkdir()
    return "inspect", "model.onnx"


def long_name(folder: Path) -> Arguments:
    return "inspect", "n" * 4000 + ".onnx"


def not_utf8(folder: Path) -> Arguments:
    return "inspect", b"mod\xff\x1b[31mel.onnx"


def linked_data(folder: Path) -> Arguments:
    found = outside("", {"location": "link.data"}).make(folder)
    (folder / "link.data").symlink_to("w.data")
    return found


def data_is_a_folder(folder: Path) -> Arguments:
    found = outside("", {"location": "folder"}).make(folder)
    (folder / "folder").mkdir()
    return found


def data_is_a_pipe(folder: Path) -> Arguments:
    found = outside("", {"location": "pipe"}).make(folder)
    os.mkfifo(folder / "pipe")
    return found


def foreign_quantized(folder: Path) -> Arguments:
    """``validate`` reads two files, of any tool: the second one is damaged."""
    (folder / "model.onnx").write_bytes(plain().SerializeToString())
    np.save(folder / "x.npy", np.zeros((4, 3, 4, 4), np.float32))
    other = plain()
    segment(other)
    (folder / "other.onnx").write_bytes(other.SerializeToString())
    return "validate", "model.onnx", "other.onnx", "--data", "x.npy", "--labels", "none", "--repeats", "0"

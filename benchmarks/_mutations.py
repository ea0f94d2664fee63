"""Damage to model files: fields of their protobuf messages, and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper

__all__ = ["mutated"]

_INTEGERS = [0, 1, 2, 3, 4, 7, 8, 16, 17, 18, 23, 26, 28, 64, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 60,
             (1 << 63) - 1, -1, -2, -5, -(1 << 31), -(1 << 62), -(1 << 63)]  # fmt: skip
_FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, float("inf"), float("-inf"), float("nan")]
_TEXTS = [
    "", "x", "ai.onnx", "com.microsoft", "ai.onnx.ml", "other.domain", "\x1b[31mred\x1b[0m", "line\nbreak", "\u202ereversed",
    "\u0000", "n" * 5000, "ünïcode", "a/b", "../weights.data", "/etc/hostname", ".", "..", "weights.data", "no such file",
    "-1", "abc", "99999999999999999999", "0x10", " 5", "1e9", "offset", "length", "location", "checksum", "NaN", "{}", "[]",
    "null", "0", "{\"a\": ",
    "DATA_BATCH", "SAME_UPPER", "VALID", "linear", "cubic", "reflect", "%s %d {0}",
]  # fmt: skip
_DOMAINS = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "other.domain", "local"]
_OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
#: Stands in for text that is not UTF-8 until the message is bytes: protobuf takes no such text itself.
_MARK = "QZ0not0utf80QZ"
_NOT_UTF8 = [b"\xff\xfe", b"\x80", b"\xc3\x28", b"\xed\xa0\x80", b"\xf0\x28\x8c\x28"]

Mutation = Callable[[Random, onnx.ModelProto], str]


def mutated(content: bytes, random: Random, *, most: int = 3) -> tuple[bytes, list[str]]:
    """A model file with one to ``most`` damages, and what they are."""
    count = random.choice([1, 1, 1, *range(1, most + 1)])
    said: list[str] = []
    in_bytes = random.random() < 0.2
    if not in_bytes:
        model = onnx.ModelProto.FromString(content)
        for _ in range(count):
            said.append(_one(random, model))
        content = _unmarked(model.SerializeToString(), random)
        in_bytes = random.random() < 0.05
    for _ in range(count if in_bytes else 0):
        content, what = _bytes(content, random)
        said.append(what)
    return content, said


def _one(random: Random, model: onnx.ModelProto) -> str:
    if random.random() < 0.3:
        special = random.choice(_SPECIAL)
        return f"{special.__name__.strip('_')}: {special(random, model)}"
    return _field(random, model)


# --- any field -------------------------------------------------------------------------------------------------------


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        for part in value if field.is_repeated else [value]:
            yield from _messages(part)


def _field(random: Random, model: onnx.ModelProto) -> str:
    """Change a field of a message; every kind of message has the same share, however many there are of it."""
    kinds: dict[str, list[Message]] = defaultdict(list)
    for message in _messages(model):
        kinds[message.DESCRIPTOR.name].append(message)
    kind = random.choice(sorted(kinds))
    message = random.choice(kinds[kind])
    fields = list(message.DESCRIPTOR.fields)
    present = [field for field, _ in message.ListFields()]
    field = random.choice(present if present and random.random() < 0.7 else fields)
    where = f"{kind}.{field.name}"
    if field.is_repeated:
        return f"{where} {_repeated(random, message, field, kinds)}"
    if message.DESCRIPTOR.name == "AttributeProto" and field.name == "type":
        value = random.choice(field.enum_type.values).number
        message.type = value
        return f"{where} = {value}"
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        others = kinds.get(field.message_type.name, [])
        if others and random.random() < 0.5:
            copy = type(others[0])()
            copy.CopyFrom(random.choice(others))
            getattr(message, field.name).CopyFrom(copy)
            return f"{where} = another one"
        if message.HasField(field.name) and random.random() < 0.6:
            message.ClearField(field.name)
            return f"{where} gone"
        getattr(message, field.name).SetInParent()
        return f"{where} empty"
    if random.random() < 0.15:
        message.ClearField(field.name)
        return f"{where} gone"
    if random.random() < 0.03:
        message.MergeFromString(random.choice([b"\xfa\x3e\x03abc", b"\xf8\x3e\x05", b"\x9a\x7f\x00"]))
        return f"{where} beside an unknown field"
    value = _scalar(random, field, getattr(message, field.name), kinds)
    setattr(message, field.name, value)
    return f"{where} = {repr(value)[:60]}"


def _repeated(random: Random, message: Message, field: FieldDescriptor, kinds: dict[str, list[Message]]) -> str:
    values = getattr(message, field.name)
    how = random.choice(["drop", "double", "swap", "clear", "change", "add"] if len(values) else ["add"])
    at = random.randrange(len(values)) if len(values) else 0
    if how == "drop":
        del values[at]
    elif how == "clear":
        message.ClearField(field.name)
    elif how == "swap" and len(values) > 1:
        other = random.randrange(len(values))
        parts = [_copy(value) for value in values]
        parts[at], parts[other] = parts[other], parts[at]
        message.ClearField(field.name)
        getattr(message, field.name).extend(parts)
    elif how == "double" or (how == "change" and field.type == FieldDescriptor.TYPE_MESSAGE):
        values.extend([_copy(values[at])])
    elif how == "add" and field.type == FieldDescriptor.TYPE_MESSAGE:
        others = kinds.get(field.message_type.name, [])
        if others and random.random() < 0.8:
            values.extend([_copy(random.choice(others))])
        else:
            values.add()
    elif how == "add":
        for _ in range(random.choice([1, 1, 1, 3, 100])):
            values.append(_scalar(random, field, None, kinds))
    elif how == "change":
        values[at] = _scalar(random, field, values[at], kinds)
        return f"[{at}] = {repr(values[at])[:60]}"
    return f"{how} [{at}]"


def _copy(value: Any) -> Any:
    if not isinstance(value, Message):
        return value
    copy = type(value)()
    copy.CopyFrom(value)
    return copy


def _scalar(random: Random, field: FieldDescriptor, old: Any, kinds: dict[str, list[Message]]) -> Any:
    """A value for ``field``: a neighbour of the old one, an extreme, a name of another thing in the model."""
    kind = field.cpp_type
    if kind in {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}:
        value = random.choice([*_INTEGERS, (old or 0) + 1, (old or 0) - 1, (old or 0) * 2, random.randrange(30)])
        low, high = {
            FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
            FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
            FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
        }[kind]
        return min(max(value, low), high)
    if kind in {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}:
        return random.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.choice(field.enum_type.values).number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _spoilt(random, old or b"")
    if field.name == "op_type" and random.random() < 0.6:
        return random.choice(_OPERATORS)
    if field.name == "domain" and random.random() < 0.8:
        return random.choice(_DOMAINS)
    if random.random() < 0.1:
        return _MARK
    if random.random() < 0.5:
        return random.choice(_names(kinds))
    return random.choice(_TEXTS)


def _names(kinds: dict[str, list[Message]]) -> list[str]:
    found = [name for node in kinds.get("NodeProto", []) for name in (*node.input, *node.output, node.name)]  # type: ignore[attr-defined]
    for kind in ("ValueInfoProto", "TensorProto", "AttributeProto", "FunctionProto"):
        found += [part.name for part in kinds.get(kind, [])]  # type: ignore[attr-defined]
    return found or [""]


def _spoilt(random: Random, old: bytes) -> bytes:
    how = random.randrange(6)
    if how == 0:
        return b""
    if how == 1:
        return old[: random.randrange(len(old) + 1)]
    if how == 2:
        return old + bytes(random.randrange(256) for _ in range(random.choice([1, 3, 4, 8])))
    if how == 3:
        return random.choice([b"\xff\xfe", b"abc", b"\x00", b"linear", b"\x80\x81", b"x" * 3000])
    if not old:
        return b"\x01"
    at = random.randrange(len(old))
    return old[:at] + bytes([random.randrange(256)]) + old[at + 1 :]


def _unmarked(content: bytes, random: Random) -> bytes:
    """``content`` with text that is not UTF-8 where the mark stands."""
    mark = _MARK.encode()
    while mark in content:
        bad = random.choice(_NOT_UTF8)
        content = content.replace(mark, bad + mark[len(bad) :].lower(), 1)
    return content


# --- fields that go together -----------------------------------------------------------------------------------------


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    return [message for message in _messages(model) if isinstance(message, TensorProto)]


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [message for message in _messages(model) if isinstance(message, onnx.NodeProto)]


def _tensor_dims(random: Random, model: onnx.ModelProto) -> str:
    tensor = random.choice(_tensors(model) or [TensorProto()])
    dims = random.choice(
        [
            [],
            [0],
            [-1],
            [1 << 40],
            [1 << 31, 1 << 31],
            [2, 3],
            [1] * 40,
            [0, 1 << 62],
            [*tensor.dims, 1],
            [*tensor.dims][1:],
        ]
    )
    tensor.ClearField("dims")
    tensor.dims.extend(dims)
    return f"{tensor.name[:40]!r} {dims}"


def _tensor_type(random: Random, model: onnx.ModelProto) -> str:
    tensor = random.choice(_tensors(model) or [TensorProto()])
    tensor.data_type = random.choice([*range(-1, 30), 1000])
    return f"{tensor.name[:40]!r} {tensor.data_type}"


def _tensor_segment(random: Random, model: onnx.ModelProto) -> str:
    tensor = random.choice(_tensors(model) or [TensorProto()])
    tensor.segment.begin, tensor.segment.end = random.choice([(0, 0), (0, 1), (5, 1), (-1, 1 << 60)])
    return tensor.name[:40]


def _tensor_fields(random: Random, model: onnx.ModelProto) -> str:
    """Data in the field of another type, or in two."""
    tensor = random.choice(_tensors(model) or [TensorProto()])
    if random.random() < 0.5:
        tensor.ClearField("raw_data")
    field = random.choice(["float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"])
    count = random.choice([1, 2, 100])
    getattr(tensor, field).extend([b"a"] * count if field == "string_data" else [1] * count)
    return f"{tensor.name[:40]!r} {field} {count}"


def _external(random: Random, model: onnx.ModelProto) -> str:
    tensor = random.choice(_tensors(model) or [TensorProto()])
    tensor.data_location = TensorProto.EXTERNAL
    if random.random() < 0.5:
        tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    entries = {
        "location": random.choice(
            [
                "weights.data",
                "../weights.data",
                "/etc/hostname",
                "",
                ".",
                "none",
                "a\x00b",
                "\x1b[1m",
                "weights.data/x",
                "x" * 300,
            ]
        ),
        "offset": random.choice(["0", "4", "-4", "1e3", "99999999999999999999", "", "abc", "3", str(1 << 40)]),
        "length": random.choice(["0", "4", "-4", "99999999999999999999", "", "abc", str(1 << 40), "64", "None"]),
        "checksum": "abc",
    }
    for key in random.sample(sorted(entries), random.randrange(1, 5)):
        tensor.external_data.add(key=key, value=entries[key])
    return f"{tensor.name[:40]!r} { {entry.key: entry.value[:30] for entry in tensor.external_data} }"


def _call(random: Random, model: onnx.ModelProto) -> str:
    """A call of a function, one that is there or not, with any numbers of in- and outputs."""
    functions = list(model.functions)
    function = (
        random.choice(functions)
        if functions and random.random() < 0.9
        else onnx.FunctionProto(name="Nothing", domain="local")
    )
    calls = [node for node in _nodes(model) if node.op_type == function.name]
    node = random.choice(calls if calls and random.random() < 0.7 else _nodes(model) or [onnx.NodeProto()])
    node.op_type, node.domain = function.name, function.domain
    how = random.randrange(5)
    if how == 0:
        node.output.append("one_more")
    elif how == 1 and len(node.output):
        del node.output[-1]
    elif how == 2 and len(node.input):
        del node.input[-1]
    elif how == 3:
        node.input.extend([*node.input][:1])
    else:
        node.attribute.append(helper.make_attribute("more", 1))
    return f"{function.name[:20]} {how}"


def _ref(random: Random, model: onnx.ModelProto) -> str:
    attributes = [attribute for node in _nodes(model) for attribute in node.attribute]
    attribute = random.choice(attributes or [onnx.AttributeProto()])
    attribute.ref_attr_name = random.choice(["alpha", "nothing", ""])
    if random.random() < 0.5:
        for field in ("f", "i", "s", "t", "g", "floats", "ints", "strings", "tensors", "graphs"):
            attribute.ClearField(field)
    return attribute.name[:40]


def _attribute(random: Random, model: onnx.ModelProto) -> str:
    """An attribute of another type, length or value."""
    node = random.choice(_nodes(model) or [onnx.NodeProto()])
    names = [attribute.name for attribute in node.attribute] or [
        "axis",
        "axes",
        "pads",
        "to",
        "value",
        "kernel_shape",
        "group",
        "alpha",
    ]
    name = random.choice(names)
    value = random.choice(
        [1, -1, 1 << 40, 0.5, float("nan"), "text", [1, 2], [], [-1] * 4, [1 << 62] * 2, [0.5], ["a"], [0] * 100]
    )
    kept = [_copy(attribute) for attribute in node.attribute if attribute.name != name]
    node.ClearField("attribute")
    node.attribute.extend(kept)
    kind = onnx.AttributeProto.INTS if value == [] else None
    node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
    return f"{node.op_type[:20]}.{name[:30]} = {repr(value)[:40]}"


def _rewire(random: Random, model: onnx.ModelProto) -> str:
    """A node reads, or makes, another tensor; also one of a later node, or its own."""
    nodes = _nodes(model)
    node = random.choice(nodes or [onnx.NodeProto()])
    names = [name for other in nodes for name in (*other.input, *other.output)] or ["x"]
    side = node.input if random.random() < 0.7 or not len(node.output) else node.output
    if not len(side):
        return "nothing to change"
    at = random.randrange(len(side))
    side[at] = random.choice([*names, ""])
    return f"{node.op_type[:20]} {side[at][:40]!r}"


def _operator(random: Random, model: onnx.ModelProto) -> str:
    node = random.choice(_nodes(model) or [onnx.NodeProto()])
    old, node.op_type = node.op_type, random.choice(_OPERATORS)
    if random.random() < 0.5:
        node.ClearField("attribute")
    return f"{old[:20]} becomes {node.op_type}"


def _sizes(random: Random, model: onnx.ModelProto) -> str:
    """Sizes of an in- or output, or of a tensor in between."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    value = random.choice(values or [onnx.ValueInfoProto()])
    shape = value.type.tensor_type.shape
    if not len(shape.dim) or random.random() < 0.1:
        shape.dim.add()
    dim = random.choice([shape.dim[0], random.choice(shape.dim)])
    if random.random() < 0.8:
        dim.dim_value = random.choice(_INTEGERS)
    else:
        dim.dim_param = random.choice(["", "N", "\x1b", "unk__0", "n" * 3000, "1", "a*b"])
    return f"{value.name[:40]!r} {str(dim)[:60]!r}"


def _opsets(random: Random, model: onnx.ModelProto) -> str:
    owners = [model, *model.functions]
    owner = random.choice(owners)
    if not len(owner.opset_import) or random.random() < 0.2:
        owner.opset_import.add(domain=random.choice(_DOMAINS), version=random.choice([1, 13, 17, 99]))
        return "one more"
    entry = random.choice(owner.opset_import)
    entry.version = random.choice([0, -1, 1, 6, 7, 9, 10, 11, 12, 13, 15, 18, 20, 22, 24, 26, 27, 99, 1 << 40])
    return f"{entry.domain[:20]!r} {entry.version}"


def _metadata(random: Random, model: onnx.ModelProto) -> str:
    """What this package, or anything, wrote into the file."""
    if not len(model.metadata_props):
        model.metadata_props.add(
            key=random.choice(["mrecg_onnx.settings", "mrecg_onnx.target", "mrecg_onnx.container", "key"]), value="{}"
        )
    entry = random.choice(model.metadata_props)
    text = entry.value
    how = random.randrange(8)
    if how == 0:
        entry.value = text[: random.randrange(len(text) + 1)]
    elif how == 1:
        entry.value = random.choice(_TEXTS)
    elif how == 2 and text:
        at = random.randrange(len(text))
        entry.value = text[:at] + random.choice('{}[]",:0-9ex\u202e\x1b') + text[at + 1 :]
    elif how == 3:
        entry.value = random.choice(
            ['{"a": 1}', "[1, 2]", "3", '"text"', "[" * 2000, "1" * 5000, '{"name": []}', "-1e400"]
        )
    elif how == 4:
        entry.key = random.choice([other.key for other in model.metadata_props] + ["mrecg_onnx.", "\x1b"])
    elif how == 5:
        entry.value = _other_value(random, text)
    elif how == 6:
        entry.value = _MARK
    else:
        model.metadata_props.remove(entry)
        return "one gone"
    return f"{entry.key[:30]!r} {entry.value[:30]!r}"


def _other_value(random: Random, text: str) -> str:
    """JSON with one value of another kind."""
    import json  # noqa: PLC0415

    try:
        found = json.loads(text)
    except ValueError:
        return text + "x"
    odd: Any = random.choice([None, True, -1, 1 << 70, 0.5, 1e400, "", "text", [], {}, [[]], "\x1b", "n" * 3000])
    if isinstance(found, dict) and found:
        found[random.choice(sorted(found))] = odd
    elif isinstance(found, list) and found:
        found[random.randrange(len(found))] = odd
    else:
        found = odd
    return json.dumps(found)


def _sparse(random: Random, model: onnx.ModelProto) -> str:
    """A constant becomes a sparse one, right or wrong."""
    graph = model.graph
    if not len(graph.initializer):
        return "none"
    tensor = random.choice(graph.initializer)
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(
        helper.make_tensor(
            tensor.name, random.choice([1, 7, tensor.data_type if tensor.data_type in {1, 7} else 1]), [2], [1, 1]
        )
    )
    sparse.indices.CopyFrom(
        helper.make_tensor("indices", TensorProto.INT64, [2], random.choice([[0, 1], [-1, 1 << 40], [1, 0], [5, 5]]))
    )
    sparse.dims.extend(random.choice([list(tensor.dims), [0], [-1], [1 << 40]]))
    if random.random() < 0.7:
        graph.initializer.remove(tensor)
    return sparse.values.name[:40]


def _twice(random: Random, model: onnx.ModelProto) -> str:
    """A name that two things have."""
    names = [name for node in _nodes(model) for name in node.output] or ["x"]
    name = random.choice(names)
    how = random.randrange(4)
    if how == 0:
        model.graph.input.append(helper.make_tensor_value_info(name, 1, [1]))
    elif how == 1:
        model.graph.initializer.append(helper.make_tensor(name, 1, [1], [1.0]))
    elif how == 2:
        model.graph.output.append(helper.make_tensor_value_info(name, random.choice([1, 7, 8]), None))
    else:
        random.choice(_nodes(model) or [onnx.NodeProto()]).name = name
    return f"{name[:40]!r} {how}"


def _kinds(random: Random, model: onnx.ModelProto) -> str:
    """An in- or output that is no tensor, or one of another type."""
    value = random.choice([*model.graph.input, *model.graph.output] or [onnx.ValueInfoProto()])
    how = random.randrange(5)
    if how == 0:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif how == 1:
        value.type.optional_type.elem_type.tensor_type.elem_type = 1
    elif how == 2:
        value.type.map_type.key_type = 7
    elif how == 3:
        value.type.sparse_tensor_type.elem_type = 1
    else:
        value.type.tensor_type.elem_type = random.choice([0, 2, 7, 8, 10, 11, 14, 16, 21, 99, -1])
    return f"{value.name[:40]!r} {how}"


def _nested(random: Random, model: onnx.ModelProto) -> str:
    """The graph inside itself."""
    node = random.choice(_nodes(model) or [onnx.NodeProto()])
    node.op_type = random.choice(["If", "Loop", "Scan", "SequenceMap", node.op_type])
    graph = _copy(model.graph)
    for name in random.sample(["then_branch", "else_branch", "body"], random.randrange(1, 3)):
        node.attribute.append(helper.make_attribute(name, graph))
    return node.op_type[:20]


_SPECIAL: list[Mutation] = [
    _tensor_dims, _tensor_type, _tensor_segment, _tensor_fields, _external, _call, _ref, _attribute, _attribute, _rewire, _rewire,
    _operator, _operator, _sizes, _sizes, _opsets, _metadata, _metadata, _sparse, _twice, _kinds, _nested,
]  # fmt: skip


# --- bytes -----------------------------------------------------------------------------------------------------------


def _bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    size = len(content)
    if not size:
        return b"\x08", "a byte"
    # The graph's structure comes first and metadata last; in between lie weights, where nothing is to be spoilt.
    at = random.choice(
        [random.randrange(min(size, 400)), random.randrange(size), size - 1 - random.randrange(min(size, 400))]
    )
    how = random.randrange(7)
    some = bytes(random.randrange(256) for _ in range(random.choice([1, 2, 4, 9])))
    if how == 0:
        return content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :], f"bit at {at}"
    if how == 1:
        return content[:at] + random.choice([b"\x00", b"\x7f", b"\x80", b"\xff"]) + content[at + 1 :], f"byte at {at}"
    if how == 2:
        return content[:at], f"cut at {at}"
    if how == 3:
        return content[:at] + some + content[at:], f"bytes put in at {at}"
    if how == 4:
        return content[:at] + content[at + len(some) :], f"bytes taken out at {at}"
    if how == 5:
        return content[:at] + some + content[at + len(some) :], f"bytes overwritten at {at}"
    length = random.randrange(1, 200)
    return content[:at] + content[at : at + length] + content[at:], f"bytes doubled at {at}"

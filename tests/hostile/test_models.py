"""Models that are damaged, odd or made to do harm: each is refused in one line that says what is wrong and where."""

from __future__ import annotations

import json

import numpy as np
from helpers.hostile import Case, Hostile, float_model, rows
from helpers.hostile_models import (
    a_folder,
    attribute,
    broken,
    call,
    calling,
    changed,
    dangling,
    data_is_a_folder,
    data_is_a_pipe,
    disguised,
    foreign_quantized,
    in_a_file,
    itself,
    kernel_too_large,
    linked_data,
    long_name,
    metadata,
    nested,
    node,
    not_text,
    not_utf8,
    only_opset,
    opset,
    outside,
    pipe,
    raw,
    segment,
    size,
    sparse,
    tensor,
    value,
    weight,
)
from onnx import AttributeProto, TensorProto, helper, numpy_helper

CASES = [
    # --- files that are none
    raw("an empty file", lambda: b"", "is not an ONNX file: it is empty"),
    raw("text", lambda: b"this is no model\n", "is not an ONNX file"),
    raw("one byte", lambda: b"\x08", "truncated or damaged"),
    raw("a pointer of Git LFS", lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    raw("cut off in the graph", lambda: float_model()[:3000], "truncated or damaged"),
    raw("cut off behind the first field", lambda: float_model()[:2], "it has no graph"),
    raw("zeros", lambda: bytes(1000), "is not an ONNX file"),
    raw("a length beyond the end", lambda: b"\x08\x08\x3a\xff\xff\xff\xff\x0f", "truncated or damaged"),
    raw("100 branches in each other", lambda: nested(100), "101 deep", "33 is the most"),
    raw("5,000 branches in each other", lambda: nested(5000), "5001 deep"),
    Case("a link to itself", itself, says=("model.onnx", "cannot be read", "symbolic links"), code=2, cpu_s=2),
    Case("a link to nothing", dangling, says=("model.onnx", "a link to a file that is not there"), code=2, cpu_s=2),
    Case("a path through a file", in_a_file, says=("model.onnx",), code=2, cpu_s=2),
    Case("a named pipe", pipe, says=("model.onnx", "named pipe"), code=2, cpu_s=2),
    Case("a folder", a_folder, says=("model.onnx", "folder"), code=2, cpu_s=2),
    Case("a name of 4,000 letters", long_name, says=("nnn", " ... ", "File name too long"), code=2, cpu_s=2),
    Case("a name that is not UTF-8", not_utf8, says=("\\udcff\\x1b[31mel.onnx", "no such file"), code=2, cpu_s=2),
    # --- text
    not_text(
        "the name of a node that is not UTF-8",
        lambda m, bad: setattr(m.graph.node[0], "name", bad),
        "name is not text in UTF-8",
    ),
    not_text(
        "the name of an input that is not UTF-8",
        lambda m, bad: setattr(m.graph.input[0], "name", bad),
        "not text in UTF-8",
    ),
    not_text(
        "the name of a tensor that is not UTF-8",
        lambda m, bad: setattr(m.graph.initializer[0], "name", bad),
        "tensor",
        "UTF-8",
    ),
    not_text(
        "what a node reads that is not UTF-8",
        lambda m, bad: m.graph.node[0].input.append(bad),
        "node 'first'",
        "input",
        "UTF-8",
    ),
    not_text(
        "an operator that is not UTF-8",
        lambda m, bad: setattr(m.graph.node[0], "op_type", bad),
        "node 'first'",
        "op_type",
    ),
    not_text("a domain that is not UTF-8", lambda m, bad: setattr(m.opset_import[0], "domain", bad), "domain", "UTF-8"),
    not_text(
        "a doc string that is not UTF-8", lambda m, bad: setattr(m.graph, "doc_string", bad), "graph 'g'", "doc_string"
    ),
    not_text("a producer that is not UTF-8", lambda m, bad: setattr(m, "producer_name", bad), "producer_name", "UTF-8"),
    not_text(
        "a key of the metadata that is not UTF-8",
        lambda m, bad: m.metadata_props.add(key=bad, value="x"),
        "key",
        "UTF-8",
    ),
    not_text(
        "metadata that are not UTF-8", lambda m, bad: m.metadata_props.add(key="k", value=bad), "metadata 'k'", "UTF-8"
    ),
    not_text(
        "the name of a size that is not UTF-8",
        lambda m, bad: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", bad),
        "tensor 'x'",
        "dim_param",
    ),
    not_text(
        "a function's name that is not UTF-8",
        lambda m, bad: setattr(m.functions[0], "name", bad),
        "UTF-8",
        build=calling,
    ),
    not_text(
        "the text of an attribute that is not UTF-8",
        lambda m, bad: m.graph.node[0].attribute.add(name="auto_pad", s=bad.encode(), type=3),
        "attribute 'auto_pad'",
        "UTF-8",
    ),
    broken("names that a terminal obeys", disguised, "\\x1b"),
    broken("a name of 5,000 letters", node(0, op_type="n" * 5000), "nnn"),
    # --- tensors
    broken(
        "fewer bytes than the shape takes", tensor(raw_data=b"\0" * 40), "tensor 'w'", "takes 48 bytes, the file has 40"
    ),
    broken("more bytes than the shape takes", tensor(raw_data=b"\0" * 4000), "tensor 'w'", "the file has 4000"),
    broken("a tensor without data", tensor(raw_data=b""), "tensor 'w'", "the file has 0"),
    broken("a shape of 2^62 numbers", tensor(dims=[2**31, 2**31]), "tensor 'w'", "the file has 48"),
    broken("a size below 0", tensor(dims=[-4, -3, 1, 1]), "tensor 'w'", "sizes are 0 or more"),
    broken("a thousand axes", tensor(dims=[1] * 1000), "tensor 'w'", "1 x ..."),
    broken("a type that is unknown", tensor(data_type=1000), "tensor 'w'", "of no type that is known (1000)"),
    broken("no type", tensor(data_type=0), "tensor 'w'", "of no type that is known"),
    broken("a type of other width", tensor(data_type=TensorProto.DOUBLE), "tensor 'w'", "takes 96 bytes"),
    broken("numbers where text is said", tensor(data_type=TensorProto.STRING), "tensor 'w'", "raw_data"),
    broken("data twice", tensor(float_data=[1.0] * 12), "tensor 'w'", "raw_data and float_data"),
    broken("data in the field of another type", tensor(raw_data=b"", int64_data=[1] * 12), "tensor 'w'", "int64_data"),
    broken(
        "fewer numbers than the shape takes",
        lambda m: m.graph.initializer[0].CopyFrom(
            TensorProto(name="w", data_type=1, dims=[4, 3, 1, 1], float_data=[1.0])
        ),
        "takes 12 entries of float_data, the file has 1",
    ),
    broken("segments", segment, "tensor 'w'", "segments"),
    broken(
        "a tensor of an attribute without its data",
        attribute(name="t", type=AttributeProto.TENSOR, t=TensorProto(data_type=1, dims=[4])),
        "attribute 't'",
        "takes 4 entries of float_data, the file has 0",
    ),
    broken("NaN in a weight", weight(np.full((4, 3, 1, 1), np.nan)), "tensor 'w'", "NaN"),
    broken("Inf in a weight", weight(np.full((4, 3, 1, 1), np.inf)), "tensor 'w'", "Inf"),
    broken("a sparse tensor of 2^60 numbers", sparse([2**30, 2**30], [0, 1]), "tensor 's'", "are the most"),
    broken("a sparse tensor with an index beyond its end", sparse([4], [0, 99]), "is not valid ONNX"),
    # --- data beside the file
    outside("an absolute path", {"location": "/etc/hostname"}, "tensor 'w'", "outside the folder"),
    outside("a path out of the folder", {"location": "../../etc/hostname"}, "tensor 'w'", "outside the folder"),
    outside("a path out of the folder with its name in front", {"location": "a/../../b"}, "outside the folder"),
    outside("a path out of the folder as Windows writes it", {"location": "..\\b"}, "outside the folder"),
    outside("a drive", {"location": "C:\\w.data"}, "outside the folder"),
    outside("no path", {}, "tensor 'w'", "is not the name of a file"),
    outside("a file that is not there", {"location": "v.data"}, "tensor 'w'", "is missing", "put it beside the model"),
    outside("the folder itself", {"location": "."}, "tensor 'w'", "is a folder"),
    outside("a path of 5,000 letters", {"location": "n" * 5000}, "tensor 'w'"),
    outside("an offset that is no number", {"location": "w.data", "offset": "abc"}, "its offset is 'abc'"),
    outside("an offset below 0", {"location": "w.data", "offset": "-4"}, "its offset is '-4'"),
    outside("an offset beyond the end", {"location": "w.data", "offset": str(2**50)}, "has 48 bytes"),
    outside("an offset of 5,000 digits", {"location": "w.data", "offset": "9" * 5000}, "its offset is '999"),
    outside("no number as a length", {"location": "w.data", "length": ""}, "its length is ''"),
    outside("a length beyond the end of its file", {"location": "w.data", "length": str(2**50)}, "truncated"),
    outside("a length that is not the tensor's", {"location": "w.data", "length": "8"}, "takes 48 bytes", "says 8"),
    Case("data behind a link", linked_data, says=("model.onnx", "tensor 'w'", "is a link"), cpu_s=2),
    Case("data that are a folder", data_is_a_folder, says=("model.onnx", "is a folder, no file"), cpu_s=2),
    Case("data that are a pipe", data_is_a_pipe, says=("model.onnx", "is a named pipe, no file"), cpu_s=2),
    # --- in- and outputs
    broken("a batch of -5", size(-5), "input 'x' has the size -5"),
    broken("a batch of 2^40", size(2**40), "input 'x'", "give it smaller sizes, or a free batch"),
    broken("an image of 2^20 by 2^20", lambda m: (size(2**20, 2)(m), size(2**20, 3)(m)), "input 'x'", "are the most"),
    broken(
        "sizes of a Reshape in two axes",
        lambda m: (
            m.graph.initializer.append(numpy_helper.from_array(np.ones((1, 2), np.int64), "sizes")),
            m.graph.node.insert(0, helper.make_node("Reshape", ["x", "sizes"], ["listed"], name="flat")),
        ),
        "node 'flat'",
        "takes 1 axes of input 2, 'sizes' has 2",
    ),
    broken("an output of -1", size(-1, output=True), "output 'y' has the size -1"),
    broken(
        "an input of no known type",
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
        "input 'x'",
        "of no type that is known (99)",
    ),
    broken(
        "an input that is a sequence",
        lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "sequence",
    ),
    broken("an input of text", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8), "'x'"),
    broken(
        "an input of type 0",
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 0),
        "input 'x' does not say of which type",
    ),
    broken("no output", lambda m: m.graph.ClearField("output"), "nothing to quantize"),
    broken("an input twice", lambda m: m.graph.input.append(m.graph.input[0]), "x"),
    broken("an output that nothing makes", lambda m: m.graph.output.append(value("z", [1])), "z"),
    # --- nodes
    broken("a node that reads what nothing makes", node(1, input=["nothing"]), "node 'relu' reads 'nothing'"),
    broken("a circle", node(0, input=["r", "w"]), "form a cycle"),
    broken("nodes in the wrong order", lambda m: m.graph.node.insert(0, m.graph.node.pop()), "stands before"),
    broken("a tensor that two nodes make", node(1, output=["a"], input=["x"]), "a"),
    broken("an operator that is not there", node(1, op_type="NoSuchOperator"), "NoSuchOperator"),
    broken("a node without an operator", node(1, op_type=""), "op_type"),
    broken(
        "constants cast to text and computed with",
        lambda m: (
            m.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "numbers")),
            m.graph.node.append(helper.make_node("Cast", ["numbers"], ["words"], name="cast", to=TensorProto.STRING)),
            m.graph.node.append(helper.make_node("Mul", ["y", "words"], ["z"], name="mul")),
            m.graph.output.append(value("z", [None] * 4)),
        ),
        "node 'mul'",
        "STRING",
    ),
    broken(
        "a type that is none",
        lambda m: m.graph.node.append(helper.make_node("Cast", ["y"], ["other"], name="cast", to=2**32)),
        "node 'cast'",
        "attribute 'to' names no type that is known (4294967296)",
    ),
    broken("an attribute twice", attribute(name="group", i=1, type=AttributeProto.INT), "attribute 'group' twice"),
    broken("an attribute without a name", attribute(i=1, type=AttributeProto.INT), "an attribute without a name"),
    broken(
        "an attribute of two values", attribute(name="odd", i=1, f=1.0, type=AttributeProto.INT), "attribute 'odd'", "i"
    ),
    broken(
        "an attribute that is a graph and has none",
        attribute(name="odd", type=AttributeProto.GRAPH),
        "attribute 'odd'",
        "no value",
    ),
    broken("0 groups", lambda m: setattr(m.graph.node[0].attribute[0], "i", 0), "node 'first'", "0 groups"),
    broken("2^62 groups", lambda m: setattr(m.graph.node[0].attribute[0], "i", 2**62), "node 'first'"),
    broken("a weight of two axes", weight(np.ones((4, 3))), "node 'first'", "3 or more axes"),
    broken(
        "a weight of no channels", weight(np.ones((0, 3, 1, 1))), "node 'first'", "0 x 3 x 1 x 1", "holds no number"
    ),
    broken("a weight for other channels", weight(np.ones((4, 5, 1, 1))), "node 'first'", "does not fit 3 channels"),
    broken("a pool larger than what it reads", kernel_too_large, "node 'pool'", "would make 'p' of size -4"),
    # --- functions and operator sets
    broken(
        "an attribute of a function outside of one",
        attribute(1, name="alpha", ref_attr_name="beta", type=1),
        "node 'relu'",
        "'beta'",
        "no attribute of a function",
    ),
    broken(
        "an attribute that the function has not",
        lambda m: setattr(m.functions[0].node[0].attribute[0], "ref_attr_name", "beta"),
        "node 'leaky'",
        "'beta'",
        build=calling,
    ),
    broken(
        "a call that leaves out what its function needs",
        lambda m: m.graph.node[1].ClearField("input"),
        "LeakyRelu with 0 inputs",
        build=calling,
    ),
    broken(
        "a call with more outputs",
        call(output="more"),
        "node 'relu' calls the function 'Act' with 2 outputs, it has 1",
        build=calling,
    ),
    broken(
        "a call with more inputs", call(input="x"), "calls the function 'Act' with 2 inputs, it has 1", build=calling
    ),
    broken(
        "a function that calls itself",
        lambda m: m.functions[0].node[0].CopyFrom(helper.make_node("Act", ["in"], ["out"], domain="local")),
        build=calling,
    ),
    broken(
        "a function of an opset to come",
        lambda m: setattr(m.functions[0].opset_import[0], "version", 99),
        "opset 99 is unknown",
        build=calling,
    ),
    broken("opset 0", only_opset(0), "version 0"),
    broken("opset -1", only_opset(-1), "version -1"),
    broken("opset 6", only_opset(6), "opset 6 is too old"),
    broken("opset 99", only_opset(99), "opset 99 is unknown"),
    broken("opset 2^40", only_opset(2**40), "versions count from 1"),
    broken("two opsets", opset(13, "ai.onnx"), "imports versions 17 and 13"),
    broken("no opset", lambda m: m.ClearField("opset_import"), "names no opset version"),
    # --- finished files
    changed("metadata that are no JSON", metadata("mrecg_onnx.container", "{"), "mrecg_onnx.container"),
    changed("metadata of 5,000 brackets", metadata("mrecg_onnx.target", "[" * 5000), "mrecg_onnx.target"),
    changed(
        "metadata of another kind", metadata("mrecg_onnx.target", json.dumps({"name": ["ort"]})), "mrecg_onnx.target"
    ),
    changed(
        "a container that is not there",
        metadata("mrecg_onnx.container", json.dumps({"name": "\x1b[31mred"})),
        "container",
    ),
    changed("bytes of a quantized weight", tensor(raw_data=b"\0"), "takes"),
    changed(
        "settings of another kind",
        metadata("mrecg_onnx.settings", "[1]"),
        "mrecg_onnx.settings",
        arguments=("inspect", "model.onnx"),
    ),
    Case("a damaged file of another tool", foreign_quantized, says=("other.onnx", "tensor 'w'", "segments"), cpu_s=3),
]


@rows(CASES)
def test_models(case: Case, hostile: Hostile) -> None:
    hostile(case)

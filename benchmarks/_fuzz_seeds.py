"""The model files that are damaged: small ones of every kind, float and quantized, each with inputs to calibrate on."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Seed", "make_seeds", "read_seeds"]

ROOT = Path(__file__).parents[1]
#: Graphs of one pattern each in tests/helpers/architectures.py, and what exporters write, in export_patterns.py.
PATTERNS = ["conv_relu", "conv_clip", "depthwise", "residual", "concat", "max_pool", "average_pool", "gemm", "matmul_add",
            "sigmoid_gate", "hardswish_gate", "conv_transpose", "two_inputs", "view_chain"]  # fmt: skip
EXPORTED = [
    "pad_reflect",
    "clip_twice",
    "two_heads",
    "split",
    "resize_nearest",
    "shuffle",
    "prelu",
    "products",
    "computed_bias",
]
#: Quantized files, by target and container.
FORMS = [("ort", "int8"), ("ort", "packed"), ("ort", "typed"), ("portable", "int8"), ("openvino", "packed"), ("tensorrt", "int8"),
         ("qnn", "typed"), ("qonnx", "int8"), ("qonnx", "qonnx")]  # fmt: skip
#: Few of them are enough where nothing is looked for but new faults: the quick part.
QUICK = ["sample", "functions", "branches", "loop", "external", "typed_fields", "sparse", "shapes", "half", "residual", "concat",
         "view_chain", "resize_nearest", "ort_int8", "ort_packed"]  # fmt: skip


#: Larger models are damaged less often, as they take longer.
_NODES = 10


@dataclass(frozen=True)
class Seed:
    """A file to be damaged.

    Attributes:
        name: of the seed.
        content: of the file.
        inputs: the file of arrays it can be calibrated on.
        source: the float model a quantized file was made from, None for float ones.
        weight: its share of the mutants against others; large models take longer.
    """

    name: str
    content: bytes
    inputs: Path
    source: Path | None
    weight: float


def make_seeds(folder: Path, data: Path | None, *, quick: bool) -> None:
    """Write all seeds to ``folder``, unless they are there."""
    if (folder / "seeds.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made: list[dict[str, Any]] = []
    builders = {**_handmade(), **_of_tests(), **_of_cases(data), **({} if quick else _zoo())}
    for name, build in builders.items():
        if quick and name not in QUICK:
            continue
        model = build()
        if name == "external":
            _save_external(model, folder / f"{name}.onnx")
        else:
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        _write_inputs(model, folder / name)
        made.append({"name": name, "weight": min(1.0, _NODES / len(model.graph.node))})
    for target, container in FORMS:
        name = f"{target}_{container}"
        if quick and name not in QUICK:
            continue
        _quantized(folder, target, container)
        made.append({"name": name, "weight": 1.0, "source": "residual"})
    (folder / "seeds.json").write_text(json.dumps(made, indent=1) + "\n")


def read_seeds(folder: Path) -> list[Seed]:
    """All seeds of ``folder``."""
    return [
        Seed(
            row["name"],
            (folder / f"{row['name']}.onnx").read_bytes(),
            folder / f"{row.get('source', row['name'])}.npz",
            folder / f"{row['source']}.onnx" if "source" in row else None,
            row["weight"],
        )
        for row in json.loads((folder / "seeds.json").read_text())
    ]


def _write_inputs(model: onnx.ModelProto, stem: Path) -> None:
    rng, constants = np.random.default_rng(0), {tensor.name for tensor in model.graph.initializer}
    arrays = {}
    for value in model.graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            sizes = [dim.dim_value or 8 for dim in tensor.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            arrays[value.name] = rng.standard_normal([6, *sizes[1:]]).astype(dtype)
    np.savez(stem.with_name(f"{stem.name}.npz"), **arrays)


def _quantized(folder: Path, target: str, container: str) -> None:
    import mrecg_onnx  # noqa: PLC0415 - torch is heavy and --help does not need it

    settings = mrecg_onnx.Settings(method="nearest", equalize="off", threads=1, target=target, container=container)
    output = folder / f"{target}_{container}.onnx"
    mrecg_onnx.quantize(folder / "residual.onnx", folder / "residual.npz", settings, output=output)


def _save_external(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)


# --- built here ------------------------------------------------------------------------------------------------------


def _value(name: str, shape: list[int | str] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    return [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    ]


def _model(
    graph: onnx.GraphProto, opset: int = 17, *, functions: list[onnx.FunctionProto] | None = None
) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid("local", 1)] if functions else [])]
    model = helper.make_model(
        graph, opset_imports=imports, functions=functions or [], ir_version=9, producer_name="maker"
    )
    model.metadata_props.add(key="author", value="somebody")
    return model


def _functions() -> onnx.ModelProto:
    """A local function with an attribute, one that calls it, and one with two outputs."""
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"], "leaky")
    leaky.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function("local", "Act", ["a"], ["b"], [leaky], imports[:1], ["alpha"]),
        helper.make_function(
            "local", "Twice", ["a"], ["c"],
            [helper.make_node("Act", ["a"], ["b"], "one", domain="local", alpha=0.1),
             helper.make_node("Act", ["b"], ["c"], "two", domain="local", alpha=0.2)],
            imports,
        ),
        helper.make_function(
            "local", "Both", ["a"], ["b", "c"], [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["a"], ["c"])],
            imports[:1],
        ),
    ]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Twice", ["a"], ["b"], "twice", domain="local"),
        helper.make_node("Both", ["b"], ["c", "d"], "both", domain="local"),
        helper.make_node("Add", ["c", "d"], ["e"], "add"),
        helper.make_node("Conv", ["e", "v"], ["y"], "conv2"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [_value("x", ["N", 3, 8, 8])],
        [_value("y", ["N", 4, 8, 8])],
        _weights(w=(4, 3, 1, 1), v=(4, 4, 1, 1)),
    )
    return _model(graph, functions=functions)


def _branches() -> onnx.ModelProto:
    """An If whose branches read from outside, one in the other."""
    inner = [
        helper.make_graph([helper.make_node(op, ["a"], [f"{op}_out"], op)], op, [], [_value(f"{op}_out", None)])
        for op in ("Relu", "Neg")
    ]
    nested = helper.make_node("If", ["flag"], ["n"], "inner", then_branch=inner[0], else_branch=inner[1])
    other = helper.make_graph([helper.make_node("Abs", ["a"], ["o"], "abs")], "other", [], [_value("o", None)])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4),
        helper.make_node("ReduceMax", ["a"], ["m"], "max", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["flag"], "greater"),
        helper.make_node(
            "If",
            ["flag"],
            ["b"],
            "if",
            then_branch=helper.make_graph([nested], "t", [], [_value("n", None)]),
            else_branch=other,
        ),
        helper.make_node("Conv", ["b", "v"], ["y"], "conv2"),
    ]
    constants = [*_weights(w=(4, 3, 3, 3), v=(4, 4, 1, 1)), numpy_helper.from_array(np.float32(0), "zero")]
    return _model(helper.make_graph(nodes, "g", [_value("x", ["N", 3, 8, 8])], [_value("y", None)], constants))


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Mul", ["s", "half"], ["s2"], "mul"), helper.make_node("Identity", ["c"], ["c2"], "keep")],
        "body", [_value("i", [], 7), _value("c", [], 9), _value("s", None)], [_value("c2", [], 9), _value("s2", None)],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Loop", ["trips", "", "a"], ["b"], "loop", body=body),
        helper.make_node("SequenceConstruct", ["b", "a"], ["q"], "sequence"),
        helper.make_node("ConcatFromSequence", ["q"], ["d"], "concat", axis=1),
        helper.make_node("Conv", ["d", "v"], ["y"], "conv2"),
    ]
    constants = [*_weights(w=(4, 3, 1, 1), v=(4, 8, 1, 1)), numpy_helper.from_array(np.int64(3), "trips")]
    return _model(helper.make_graph(nodes, "g", [_value("x", ["N", 3, 8, 8])], [_value("y", None)], constants))


def _typed_fields() -> onnx.ModelProto:
    """Numbers in the fields of their types instead of bytes, Constants of every kind, text."""
    rng = np.random.default_rng(0)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 1, 1], rng.standard_normal(12).tolist())
    half = helper.make_tensor("h", TensorProto.FLOAT16, [4], [0.5, 1, 1.5, 2])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Constant", [], ["axes"], "k1", value_ints=[2, 3]),
        helper.make_node("Constant", [], ["one"], "k2", value_float=1.0),
        helper.make_node(
            "Constant", [], ["shape"], "k3", value=helper.make_tensor("s", TensorProto.INT64, [2], [0, 4])
        ),
        helper.make_node("Add", ["a", "one"], ["b"], "add"),
        helper.make_node("ReduceSum", ["b", "axes"], ["c"], "sum", keepdims=0),
        helper.make_node("Cast", ["h"], ["h32"], "cast", to=1),
        helper.make_node("Mul", ["c", "h32"], ["d"], "mul"),
        helper.make_node("Reshape", ["d", "shape"], ["e"], "reshape"),
        helper.make_node("Gemm", ["e", "v"], ["y"], "gemm", alpha=1.0, transB=1),
    ]
    constants = [weight, half, helper.make_tensor("v", TensorProto.FLOAT, [5, 4], rng.standard_normal(20).tolist())]
    model = _model(helper.make_graph(nodes, "g", [_value("x", ["N", 3, 8, 8])], [_value("y", ["N", 5])], constants))
    entry = model.graph.quantization_annotation.add(tensor_name="a")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="one")
    return model


def _sparse() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "conv"), helper.make_node("Flatten", ["a"], ["f"], "flat"),
             helper.make_node("MatMul", ["f", "s"], ["y"], "matmul")]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [_value("x", ["N", 3, 2, 2])], [_value("y", ["N", 5])], _weights(w=(4, 3, 1, 1))
    )
    sparse = graph.sparse_initializer.add()
    sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [3], [1, 20, 70]))
    sparse.dims.extend([16, 5])
    return _model(graph)


def _shapes() -> onnx.ModelProto:
    """The arithmetic on shapes that exporters write."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], "bn"),
        helper.make_node("Shape", ["n"], ["sh"], "shape"),
        helper.make_node("Gather", ["sh", "zero"], ["size"], "gather"),
        helper.make_node("Unsqueeze", ["size", "axis"], ["u"], "unsqueeze"),
        helper.make_node("Concat", ["u", "minus"], ["to"], "concat", axis=0),
        helper.make_node("Reshape", ["n", "to"], ["r"], "reshape"),
        helper.make_node("Slice", ["r", "zero1", "sixty", "axis1"], ["sl"], "slice"),
        helper.make_node("Transpose", ["sl"], ["t"], "transpose", perm=[1, 0]),
        helper.make_node("Transpose", ["t"], ["t2"], "transpose2", perm=[1, 0]),
        helper.make_node("Softmax", ["t2"], ["p"], "softmax", axis=-1),
        helper.make_node("Gemm", ["p", "g", "c"], ["y"], "gemm"),
    ]
    numbers = {
        "zero": np.array(0),
        "axis": np.array([0]),
        "minus": np.array([-1]),
        "zero1": np.array([0]),
        "sixty": np.array([60]),
        "axis1": np.array([1]),
    }
    constants = [*_weights(w=(4, 3, 3, 3), s=(4,), b=(4,), m=(4,), g=(60, 5), c=(5,)),
                 numpy_helper.from_array(np.ones(4, np.float32), "v"),
                 *(numpy_helper.from_array(array, name) for name, array in numbers.items())]  # fmt: skip
    return _model(helper.make_graph(nodes, "g", [_value("x", [1, 3, 8, 8])], [_value("y", [1, 5])], constants), 13)


def _half() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], "conv"), helper.make_node("Relu", ["a"], ["b"], "relu"),
             helper.make_node("Conv", ["b", "v"], ["y"], "conv2")]  # fmt: skip
    constants = [
        numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name)
        for t in _weights(w=(4, 3, 1, 1), v=(2, 4, 3, 3))
    ]
    return _model(helper.make_graph(nodes, "g", [_value("x", ["N", 3, 8, 8], 10)], [_value("y", None, 10)], constants))


def _recurrent() -> onnx.ModelProto:
    """Nodes that ONNX Runtime runs: an LSTM, an operator of its own."""
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["a"], "lstm", hidden_size=4),
        helper.make_node("Squeeze", ["a", "one"], ["b"], "squeeze"),
        helper.make_node("FusedMatMul", ["b", "k"], ["c"], "fused", domain="com.microsoft", alpha=2.0),
        helper.make_node("MatMul", ["c", "v"], ["y"], "matmul"),
    ]
    constants = [
        *_weights(w=(1, 16, 3), r=(1, 16, 4), k=(4, 4), v=(4, 5)),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    model = _model(helper.make_graph(nodes, "g", [_value("x", ["T", 2, 3])], [_value("y", None)], constants))
    model.opset_import.add(domain="com.microsoft", version=1)
    return model


def _sample() -> onnx.ModelProto:
    return onnx.load(ROOT / "samples" / "digits.onnx")


def _handmade() -> dict[str, Callable[[], onnx.ModelProto]]:
    return {
        "sample": _sample, "functions": _functions, "branches": _branches, "loop": _loop, "external": _shapes,
        "typed_fields": _typed_fields,
        "sparse": _sparse, "shapes": _shapes, "half": _half, "recurrent": _recurrent,
    }  # fmt: skip


# --- of the tests, and cases -----------------------------------------------------------------------------------------


def _of_tests() -> dict[str, Callable[[], onnx.ModelProto]]:
    sys.path[:0] = [str(ROOT / "tests")]
    from helpers import architectures, export_patterns  # noqa: PLC0415 - of the tests

    return {name: getattr(architectures, name) for name in PATTERNS} | {
        name: getattr(export_patterns, name) for name in EXPORTED
    }


def _zoo() -> dict[str, Callable[[], onnx.ModelProto]]:
    from helpers.networks import exported  # noqa: PLC0415 - of the tests

    def build(name: str) -> Callable[[], onnx.ModelProto]:
        return lambda: exported(name, 17, dynamo=False, dynamic=True)

    return {f"zoo_{name}": build(name) for name in ("vit", "yolo", "shufflenet_v2")}


def _of_cases(data: Path | None) -> dict[str, Callable[[], onnx.ModelProto]]:
    script = None if data is None else data / "cases" / "make_cases.py"
    if script is None or not script.exists():
        return {}
    spec = importlib.util.spec_from_file_location("make_cases", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {f"case_{make.__name__}": lambda make=make: make()[0] for make in module.CASES}


def chosen(seeds: list[Seed], draw: random.Random) -> Seed:
    """One of ``seeds`` by their weights."""
    return draw.choices(seeds, [seed.weight for seed in seeds])[0]

#!/usr/bin/env bash
# LiteRT (ai-edge-litert) 2.3.0: portable convolutions of int8 round a sum's product to a whole number, shift it, and round again.
#
# Expected: round(sum * input scale * weight scale / output scale): a sum of 10 times .1496 is 1.496, the code 1.
# Seen: the default delegate (XNNPACK) gives 1; the kernels without it, those of microcontrollers, make 6 of 10 * .5985 and 2 of 6 / 4.
# Sums of codes of few bits are that small. With the weight's code times 64 and its scale divided by 64, the same value, they give 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ai-edge-litert==2.3.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def tensor(name, shape, kind, scale, buffer=0):
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, kind, buffer
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint, made.quantization.quantizedDimension = [scale], [0], 0
    return made


def model(code, scale):
    image, kinds = [1, 1, 1, 1], schema.TensorType
    graph, node, kernel, made = schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT(), schema.ModelT()
    graph.tensors = [
        tensor("x", image, kinds.INT8, 1.0), tensor("w", image, kinds.INT8, scale, 1),
        tensor("b", [1], kinds.INT32, scale, 2), tensor("y", image, kinds.INT8, 1.0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [node]
    node.inputs, node.outputs, node.opcodeIndex = [0, 1, 2], [3], 0
    node.builtinOptionsType, node.builtinOptions = schema.BuiltinOptions.Conv2DOptions, schema.Conv2DOptionsT()
    node.builtinOptions.strideW = node.builtinOptions.strideH = 1
    kernel.builtinCode = kernel.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    kernel.version = 3
    buffers = [schema.BufferT() for _ in range(3)]
    buffers[1].data, buffers[2].data = np.array([code], np.int8).view(np.uint8), np.zeros(4, np.uint8)
    made.version, made.subgraphs, made.operatorCodes, made.buffers = 3, [graph], [kernel], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def output(content, kernels):
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.full((1, 1, 1, 1), 10, np.int8))
    interpreter.invoke()
    return int(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).item())


scale = float(np.float32(0.149626638))
portable = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
small, large = model(1, scale), model(64, scale / 64)
seen = {
    "delegate": output(small, OpResolverType.AUTO), "portable": output(small, portable), "portable, times 64": output(large, portable),
}
print(seen)
assert seen == {"delegate": 1, "portable": 2, "portable, times 64": 1}
PYTHON

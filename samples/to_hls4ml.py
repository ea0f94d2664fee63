"""Bring a quantized file into hls4ml: an HLS project for an FPGA, and its C simulation.

Run ``python samples/to_hls4ml.py model_q.onnx --output FOLDER [--images X.npy --outputs Y.npy]`` in an environment that has
``hls4ml qonnx onnxruntime`` and, to simulate, g++. ``model_q.onnx`` was quantized with ``--target qonnx``, in either
container. X.npy holds float32 images as the network takes them (N, C, H, W); Y.npy gets what the simulation makes of them.

hls4ml 1.3.0 turns a Quant node whose scale is no power of two into a multiplication, a rounding and a second
multiplication, and connects the second one with the first node alone that reads the tensor as its first input
(``findings/hls4ml_quant_readers.sh``): further readers, and an Add's second input, get codes where values belong, without
an error. So scales are written out here before it reads the graph:

- every Quant node rounds to codes, with scale 1, behind a multiplication with 1 / scale;
- scales of weights and activations are multiplied together behind the layer, which so computes on codes; they move past
  nodes that only move values, and stand in front of every other reader, one multiplication each.

The rest is what hls4ml asks of any graph: a batch of one, biases of convolutions as additions of vectors, Gemm as MatMul,
Clips as Relus, channels last. Values are the same up to float32's rounding.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import hls4ml
import numpy as np
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.change_batchsize import ChangeBatchSize
from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.general import GiveUniqueNodeNames, RemoveUnusedTensors
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.qcdq_to_qonnx import QCDQToQuant
from qonnx.util.cleanup import cleanup_model

#: What computes a product with weights, and what commutes with a scale and keeps codes what they are.
LAYERS, MOVES = {"Conv", "MatMul"}, {"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
CHANNELS_LAST = "qonnx.custom_op.channels_last"


def prepared(path: str | Path) -> Any:
    """The file's graph as hls4ml computes it right: a ``ModelWrapper``, input channels last.

    Raises:
        SystemExit: a quantizer has a zero point or a form that hls4ml does not compute.
    """
    graph = ModelWrapper(str(path))
    for step in (
        ChangeBatchSize(1),
        InferShapes(),
        QCDQToQuant(),
        ExtractBiasFromConv(),
        GemmToMatMul(),
        InferShapes(),
    ):
        graph = graph.transform(step)
    graph = cleanup_model(graph)
    for clip in [n for n in graph.graph.node if n.op_type == "Clip"]:
        _clip(graph, clip)
    for number, quant in enumerate([n for n in graph.graph.node if n.op_type == "Quant"]):
        _write_out(graph, quant, f"q{number}")
    graph = graph.transform(RemoveUnusedTensors()).transform(GiveUniqueNodeNames())
    _channels_last(graph)
    for number, tensor in enumerate(list(graph.graph.initializer)):
        name = f"const_{number}"  # hls4ml makes nodes of constants: names apart from those of nodes
        graph.rename_tensor(tensor.name, name)
        values = graph.get_initializer(name)
        reader = _readers(graph, name)[0][0]
        if reader.op_type in {"Add", "Mul"} and values.ndim == 4:
            values = values.reshape(-1)
        graph.set_initializer(name, values)
        graph.set_tensor_shape(name, list(values.shape))
    return graph


def _clip(graph: Any, clip: Any) -> None:
    """``clip``, which hls4ml does not read, becomes high - Relu((high - low) - Relu(x - low))."""
    low, high = (float(graph.get_initializer(name)) for name in clip.input[1:])
    stem, made, shape = clip.output[0], clip.input[0], graph.get_tensor_shape(clip.output[0])
    steps = [
        ("Add", -low),
        ("Relu", None),
        ("Mul", -1.0),
        ("Add", high - low),
        ("Relu", None),
        ("Mul", -1.0),
        ("Add", high),
    ]
    steps = steps[low == 0.0 :]
    place = list(graph.graph.node).index(clip)
    graph.graph.node.remove(clip)
    for number, (kind, value) in enumerate(steps):
        source, made = made, stem if number == len(steps) - 1 else f"{stem}_step{number}"
        inputs = [source]
        if value is not None:
            graph.set_initializer(f"{stem}_value{number}", np.array([value], np.float32))
            inputs.append(f"{stem}_value{number}")
        graph.set_tensor_shape(made, shape)
        graph.graph.node.insert(place + number, helper.make_node(kind, inputs, [made], name=f"{stem}_{number}"))


def _readers(graph: Any, name: str) -> list[tuple[Any, int]]:
    return [(node, i) for node in graph.graph.node for i, source in enumerate(node.input) if source == name]


def _multiply(graph: Any, place: int, source: str, factor: Any, made: str, shape: Any) -> None:
    graph.set_initializer(f"{made}_factor", np.asarray(factor, np.float32))
    for name in (source, made):
        graph.set_tensor_shape(name, shape)
    graph.graph.node.insert(place, helper.make_node("Mul", [source, f"{made}_factor"], [made], name=f"{made}_Mul"))


def _write_out(graph: Any, quant: Any, name: str) -> None:
    """``quant`` gets scale 1, and its scale stands around it or behind the layers that read it."""
    weight, scale, zero, _ = (graph.get_initializer(x) for x in quant.input)
    if np.any(zero):
        raise SystemExit(
            f"'{quant.output[0]}' has a zero point, which hls4ml cannot move: quantize with --target qonnx"
        )
    graph.set_initializer(f"{name}_one", np.array(1, np.float32))
    made, shape = quant.output[0], graph.get_tensor_shape(quant.output[0])
    if weight is None:
        if scale.size != 1:
            raise SystemExit(f"'{made}' has a scale a channel: activations have one scale a tensor")
        _spread(graph, made, scale.reshape(-1))
        place = list(graph.graph.node).index(quant)
        _multiply(graph, place, quant.input[0], 1 / scale.reshape(-1), f"{name}_scaled", shape)
        quant.input[0] = f"{name}_scaled"
    else:
        readers = _readers(graph, made)
        layer = readers[0][0]
        graph.set_initializer(quant.input[0], np.rint(weight / scale).astype(np.float32))
        if layer.op_type == "Transpose":  # hls4ml takes constants alone for weights
            graph.set_initializer(quant.input[0], graph.get_initializer(quant.input[0]).T)
            graph.set_tensor_shape(made, shape[::-1])
            readers = _readers(graph, layer.output[0])
            graph.graph.node.remove(layer)
            layer = readers[0][0]
            layer.input[1] = made
        if len(readers) > 1 or layer.op_type not in LAYERS:
            raise SystemExit(
                f"'{made}' are weights of {layer.op_type}: hls4ml has those of Conv and Gemm, one layer each"
            )
        along = [1, -1, 1, 1] if layer.op_type == "Conv" else [-1]
        _behind(graph, layer, scale.reshape(along))
    quant.input[1] = f"{name}_one"


def _spread(graph: Any, tensor: str, scale: Any) -> None:
    """Everything that reads ``tensor`` gets it times ``scale``, or computes on codes and is scaled behind."""
    for number, (reader, index) in enumerate(_readers(graph, tensor)):
        if reader.op_type in LAYERS and index == 0:
            _behind(graph, reader, scale)
        elif reader.op_type in MOVES:
            _spread(graph, reader.output[0], scale)
        else:
            made = f"{tensor}_values{number}"
            place = list(graph.graph.node).index(reader)
            _multiply(graph, place, tensor, scale, made, graph.get_tensor_shape(tensor))
            reader.input[index] = made
    if any(output.name == tensor for output in graph.graph.output):
        raise SystemExit(f"output '{tensor}' is quantized: hls4ml's would be codes; leave it float")


def _behind(graph: Any, layer: Any, scale: Any) -> None:
    """Multiply what ``layer`` makes by ``scale``, in the multiplication that stands there or a new one."""
    codes = layer.output[0]
    readers = _readers(graph, codes)
    if codes.endswith("_codes"):
        factor = readers[0][0].input[1]
        graph.set_initializer(factor, graph.get_initializer(factor) * scale)
        return
    layer.output[0] = f"{codes}_codes"
    place = list(graph.graph.node).index(layer) + 1
    _multiply(graph, place, layer.output[0], scale, codes, graph.get_tensor_shape(codes))


def _channels_last(graph: Any) -> None:
    """All images of the graph become (1, H, W, C), the input among them.

    qonnx's own conversion leaves turns between layouts where a tensor has several readers, which hls4ml reads wrong.
    """
    images = {v.name for v in [*graph.graph.input, *graph.graph.output, *graph.graph.value_info]}
    images = {n for n in images if len(graph.get_tensor_shape(n)) == 4 and graph.get_initializer(n) is None}
    for node in list(graph.graph.node):
        kind, source = node.op_type, node.input[0]
        if graph.get_initializer(source) is not None:
            images.discard(node.output[0])
        elif source not in images or kind in {"Add", "Mul", "Quant", "Relu", "Sigmoid"}:
            continue
        elif kind in {"AveragePool", "Conv", "GlobalAveragePool", "MaxPool"}:
            node.domain = CHANNELS_LAST
            if kind == "GlobalAveragePool":  # hls4ml reads it channels first
                size = graph.get_tensor_shape(source)[2:]
                node.op_type = "AveragePool"
                attributes = {"kernel_shape": size, "strides": size, "pads": [0, 0, 0, 0]}
                node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
            elif kind == "Conv":
                _turn(graph, node.input[1])
        elif kind in {"Flatten", "Reshape", "Squeeze"}:
            _reorder_rows(graph, node)
        else:
            raise SystemExit(
                f"'{node.output[0]}' is made by {kind}, which hls4ml does not read or this script does not turn"
            )
    for name in images:
        count, channels, height, width = graph.get_tensor_shape(name)
        graph.set_tensor_shape(name, [count, height, width, channels])


def _reorder_rows(graph: Any, flatten: Any) -> None:
    """The weights behind ``flatten`` get their rows in the order of (H, W, C).

    hls4ml would do so for a Transpose in front of it, and fails in io_parallel.
    """
    shape, tensor = graph.get_tensor_shape(flatten.input[0]), flatten.output[0]
    if math.prod(shape[2:]) == 1:
        return
    while len(readers := _readers(graph, tensor)) == 1 and readers[0][0].op_type in {"Mul", "Quant", "Relu"}:
        tensor = readers[0][0].output[0]
    if len(graph.get_tensor_shape(tensor)) != 2 or [(n.op_type, i) for n, i in readers] != [("MatMul", 0)]:
        raise SystemExit(f"'{flatten.output[0]}' is read by others than one fully connected layer")
    quant = graph.find_producer(readers[0][0].input[1])
    stored = quant.input[0] if quant is not None else readers[0][0].input[1]
    rows = np.arange(math.prod(shape)).reshape(shape[1:]).transpose(1, 2, 0).ravel()
    graph.set_initializer(stored, graph.get_initializer(stored)[rows])


def _turn(graph: Any, name: str) -> None:
    """Filters ``name``, made by a Quant node or constant, become (M, H, W, C)."""
    quant = graph.find_producer(name)
    stored = quant.input[0] if quant is not None else name
    values = np.ascontiguousarray(graph.get_initializer(stored).transpose(0, 2, 3, 1))
    graph.set_initializer(stored, values)
    for tensor in (stored, name):
        graph.set_tensor_shape(tensor, list(values.shape))


def converted(graph: Any, folder: str | Path, *, io_type: str = "io_stream", bits: int = 64, integer: int = 16) -> Any:
    """hls4ml's model of :func:`prepared`'s graph, its project in ``folder``.

    Args:
        graph: what :func:`prepared` gives.
        folder: where the project is written.
        io_type: how values flow, ``io_stream`` or ``io_parallel``.
        bits: width of fixed-point values between quantizers, and of scales and biases; hls4ml infers all others.
        integer: how many of them stand before the point, the sign among them.

    Raises:
        SystemExit: a scale or bias is larger than that.
    """
    for tensor in graph.graph.initializer:
        largest = float(np.abs(graph.get_initializer(tensor.name)).max(initial=0))
        if largest >= 2 ** (integer - 1):
            raise SystemExit(
                f"a constant of {largest:.6g} needs --integer {math.floor(math.log2(largest)) + 2} or more"
            )
    precision = f"fixed<{bits},{integer}>"
    config = hls4ml.utils.config.config_from_onnx_model(
        graph, granularity="name", backend="Vitis", default_precision=precision
    )
    for node in graph.graph.node:
        # hls4ml would take the scale behind a depthwise convolution into its weights, and fails; not where a type is given.
        if node.op_type == "Conv" and next((a.i for a in node.attribute if a.name == "group"), 1) > 1:
            config["LayerName"][node.name]["Precision"]["result"] = "fixed<64,32>"
    return hls4ml.converters.convert_from_onnx_model(
        graph, hls_config=config, output_dir=str(folder), io_type=io_type, backend="Vitis"
    )


def simulated(model: Any, images: Any) -> Any:
    """What the C simulation of :func:`converted`'s model makes of float32 ``images`` (N, C, H, W); built with g++.

    The project is built with -O1: at hls4ml's -O3 g++ takes several times as long for the same values.
    """
    model.write()
    script = Path(model.config.get_output_dir()) / "build_lib.sh"
    script.write_text(script.read_text().replace("-O3", "-O1"))
    model._compile()  # noqa: SLF001 - compile() would write the project, and -O3, again
    return model.predict(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the project")
    parser.add_argument("--images", type=Path, help="images to simulate")
    parser.add_argument("--outputs", type=Path, help="where the simulation's outputs go")
    parser.add_argument("--io-type", default="io_stream", choices=["io_stream", "io_parallel"])
    parser.add_argument("--bits", type=int, default=64, help="width of values between quantizers (default 64)")
    parser.add_argument("--integer", type=int, default=16, help="bits before the point, with the sign (default 16)")
    args = parser.parse_args()
    if (args.images is None) != (args.outputs is None):
        parser.error("--images and --outputs go together")
    model = converted(prepared(args.model), args.output, io_type=args.io_type, bits=args.bits, integer=args.integer)
    if args.images is None:
        model.write()
    else:
        np.save(args.outputs, simulated(model, np.load(args.images)))


if __name__ == "__main__":
    main()

"""One tool on one file: what benchmarks/other_tools.py runs in the environment that has the tool.

usage: python _other_tools.py TOOL IN.onnx OUT.onnx; with no arguments the tools that are there and their versions,
with --packages the package of every tool, both as JSON
"""

# ruff: noqa: PLC0415 - a tool is imported where it is asked for

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path


def _onnxsim(source: str, target: str) -> None:
    import onnx
    import onnxsim

    model, right = onnxsim.simplify(onnx.load(source))
    if not right:
        raise SystemExit("onnxsim says that its result is not right")
    onnx.save(model, target)


def _onnxslim(source: str, target: str, **options: object) -> None:
    import onnxslim

    onnxslim.slim(source, target, **options)


def _float16(source: str, target: str) -> None:
    import onnx
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _preprocess(source: str, target: str) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, target)


def _saved(level: str) -> Callable[[str, str], None]:
    def run(source: str, target: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = target
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return run


def _symbolic(source: str, target: str) -> None:
    import onnx
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    onnx.save(SymbolicShapeInference.infer_shapes(onnx.load(source), auto_merge=True), target)


def _inferred(source: str, target: str) -> None:
    import onnx

    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source), strict_mode=True, data_prop=True), target)


def _versions(source: str, target: str) -> None:
    import onnx
    from onnx import version_converter

    onnx.save(version_converter.convert_version(onnx.load(source), 25), target)


def _prefixed(source: str, target: str) -> None:
    import onnx
    from onnx import compose

    model = onnx.load(source)
    onnx.save(compose.add_prefix(model, "a/", rename_inputs=False, rename_outputs=False), target)


def _merged(source: str, target: str) -> None:
    """A Mul by one in front, as people put a normalization there."""
    import onnx
    from onnx import TensorProto, compose, helper

    model = onnx.load(source)
    given = model.graph.input[0]
    wide = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, None)
    wide.type.CopyFrom(given.type)
    made = helper.make_tensor_value_info("scaled", TensorProto.FLOAT, None)
    made.type.CopyFrom(given.type)
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph([helper.make_node("Mul", ["pixels", "one"], ["scaled"])], "front", [wide], [made], [one])
    front = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.save(compose.merge_models(front, model, io_map=[("scaled", given.name)]), target)


def _extracted(source: str, target: str) -> None:
    import onnx

    graph = onnx.load(source).graph
    onnx.utils.extract_model(source, target, [v.name for v in graph.input], [v.name for v in graph.output])


def _graphsurgeon(source: str, target: str, *, fold: bool) -> None:
    import onnx
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(onnx.load(source))
    if fold:
        graph.fold_constants()
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), target)


def _onnx_tool(source: str, target: str) -> None:
    import onnx_tool

    model = onnx_tool.Model(source, {"verbose": False})
    model.save_model(target)


def _onnxoptimizer(source: str, target: str) -> None:
    import onnx
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


def _polygraphy(source: str, target: str, *options: str) -> None:
    program = Path(sys.executable).with_name("polygraphy")
    done = subprocess.run(
        [sys.executable, str(program), "surgeon", "sanitize", source, "-o", target, *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])


def _onnxscript(source: str, target: str) -> None:
    import onnx
    import onnxscript.optimizer

    onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)


def _onnx_ir(source: str, target: str) -> None:
    import onnx_ir

    onnx_ir.save(onnx_ir.load(source), target)


def _olive(source: str, target: str) -> None:
    """The graph pass that its `optimize` begins with."""
    import shutil
    import tempfile

    from olive.hardware import DEFAULT_CPU_ACCELERATOR
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.peephole_optimizer import OnnxPeepholeOptimizer

    with tempfile.TemporaryDirectory() as folder:
        one = create_pass_from_dict(
            OnnxPeepholeOptimizer, {}, disable_search=True, accelerator_spec=DEFAULT_CPU_ACCELERATOR
        )
        found = one.run(ONNXModelHandler(source), str(Path(folder) / "model.onnx"))
        shutil.copy(found.model_path, target)


#: What people run on a file, its package, and the call.
TOOLS: dict[str, tuple[str, Callable[[str, str], None]]] = {
    "onnxsim.simplify": ("onnxsim", _onnxsim),
    "onnxslim": ("onnxslim", _onnxslim),
    "onnxslim --size-threshold 1": ("onnxslim", lambda s, t: _onnxslim(s, t, size_threshold=1)),
    "float16.convert_float_to_float16": ("onnxconverter-common", _float16),
    "onnxruntime.quantization.preprocess": ("onnxruntime", _preprocess),
    "optimized_model_filepath, basic": ("onnxruntime", _saved("BASIC")),
    "optimized_model_filepath, all": ("onnxruntime", _saved("ALL")),
    "symbolic_shape_infer": ("onnxruntime", _symbolic),
    "shape_inference, data_prop": ("onnx", _inferred),
    "version_converter to 25": ("onnx", _versions),
    "compose.add_prefix": ("onnx", _prefixed),
    "compose.merge_models": ("onnx", _merged),
    "utils.extract_model": ("onnx", _extracted),
    "import_onnx, cleanup, export_onnx": ("onnx-graphsurgeon", lambda s, t: _graphsurgeon(s, t, fold=False)),
    "the same with fold_constants": ("onnx-graphsurgeon", lambda s, t: _graphsurgeon(s, t, fold=True)),
    "surgeon sanitize": ("polygraphy", lambda s, t: _polygraphy(s, t, "--cleanup")),
    "surgeon sanitize --fold-constants": ("polygraphy", lambda s, t: _polygraphy(s, t, "--fold-constants")),
    "onnx_tool save_model": ("onnx-tool", _onnx_tool),
    "onnxoptimizer.optimize": ("onnxoptimizer", _onnxoptimizer),
    "onnxscript.optimizer.optimize": ("onnxscript", _onnxscript),
    "onnx_ir load and save": ("onnx-ir", _onnx_ir),
    "OnnxPeepholeOptimizer": ("olive-ai", _olive),
}


def _there() -> dict[str, str]:
    """Tools whose package is installed, with its version."""
    found = {}
    for name, (package, _) in TOOLS.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps(_there()))
    elif sys.argv[1] == "--packages":
        print(json.dumps({name: package for name, (package, _) in TOOLS.items()}))
    else:
        TOOLS[sys.argv[1]][1](*sys.argv[2:])

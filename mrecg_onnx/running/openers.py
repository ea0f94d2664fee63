"""How each runtime opens a model, runs it and names its kernels. Stands alone: numpy and the runtime are all that it needs.

Environments that hold a runtime need not have this package, as many runtimes cannot live in one: ``worker.py`` is copied beside
its job with this file and started there. :mod:`.catalogue` has a row for each class; ``worker.cjs`` is both files for node.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["OPENERS", "Session", "openvino_kernels", "profile_events"]

Feeds = dict[str, npt.NDArray[Any]]
Arrays = list[npt.NDArray[Any]]
_CPU = "CPUExecutionProvider"
_NAMES = re.compile(r'(?<="name" :").*?(?=","args" : \{)', re.DOTALL)
#: Types of tensors by the upper byte of QNN's numbers (QnnTypes.h); the lower one has the bits as hexadecimal digits.
_QNN_TYPES = {"0": "I", "1": "U", "2": "F", "3": "I", "4": "U"}


#: What pnnx makes.
_PNNX = ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnparam", "ncnnbin", "ncnnpy")


def _end_with_this() -> None:
    """In a child before its program starts: the system kills it where this process is killed (PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Session:
    """An open model.

    Args:
        path: the model, which may lie in a folder of somebody's own.
        first: one batch, by input name: some runtimes want to know the sizes.
        outputs: names of the graph's outputs.
        threads: threads inside an operator, None for the runtime's own choice.
        options: those of the runtime's row.
        folder: where files are made, an empty one.
    """

    def __init__(
        self, path: str, first: Feeds, outputs: list[str], threads: int | None, options: Mapping[str, Any], folder: Path
    ) -> None:
        self.path, self.first, self.outputs, self.threads, self.options = path, first, outputs, threads, options
        self.folder, self.version = folder, ""
        self.open()

    def open(self) -> None:
        """Open the model and set ``version``; whatever the runtime raises is its reason."""
        raise NotImplementedError

    def run(self, feeds: Feeds) -> Arrays:
        """One batch: the outputs in the graph's order."""
        raise NotImplementedError

    def kernels(self) -> dict[str, int]:
        """Operators or kernels as the runtime calls them, with their type where it says one; empty where it says nothing."""
        return {}


class _OnnxRuntime(Session):
    """ONNX Runtime at its default level on the provider of ``options``, which may leave nodes to the CPU."""

    def open(self) -> None:
        self.ort = import_module("onnxruntime")
        self.ort.set_default_logger_severity(4)
        self.version = self.ort.__version__
        self.session = self._session()

    def _session(self, profile: str = "") -> Any:
        options = self.ort.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        provider = self.options["provider"]
        providers = list(dict.fromkeys([provider, _CPU]))
        session = self.ort.InferenceSession(self.path, options, providers, enable_fallback=0)
        if provider not in session.get_providers():
            raise RuntimeError(f"{provider} could not be loaded")
        return session

    def run(self, feeds: Feeds) -> Arrays:
        return list(self.session.run(None, feeds))

    def kernels(self) -> dict[str, int]:
        if not self.first:
            return {}
        profiled = self._session(str(self.folder / "profile"))
        profiled.run(None, self.first)
        return _profiled(profile_events(profiled.end_profiling()))


class _Qnn(_OnnxRuntime):
    """ONNX Runtime with Qualcomm's plugin and its HTP library, which is a simulator where there is no such processor."""

    def _session(self, profile: str = "") -> Any:
        plugin = import_module("onnxruntime_qnn")
        self.version = f"{self.version}, plugin {metadata.version('onnxruntime-qnn')}"
        if not any(device.ep_name == plugin.get_ep_name() for device in self.ort.get_ep_devices()):
            self.ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        devices = [device for device in self.ort.get_ep_devices() if device.ep_name == plugin.get_ep_name()]
        self.graphs = self.folder / "qnn"
        self.graphs.mkdir(exist_ok=True)
        told = {"backend_type": "htp", "dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(self.graphs)}
        options = self.ort.SessionOptions()
        options.add_provider_for_devices(devices[:1], told)
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        session = self.ort.InferenceSession(self.path, options)
        if not list(self.graphs.glob("*.json")):
            raise RuntimeError("QNN takes none of its nodes; target qnn and a fixed batch suit it")
        return session

    def kernels(self) -> dict[str, int]:
        """Operators of QNN's graphs with the type of what they make, and what was left to the CPU."""
        left = super().kernels()
        counts = Counter({name: n for name, n in left.items() if "(" not in name})
        for file in self.graphs.glob("*.json"):
            graph = json.loads(file.read_text(encoding="utf-8")).get("graph", {})
            for node in graph.get("nodes", {}).values():
                number = f"{graph['tensors'][node['output_names'][0]]['data_type']:04x}"
                counts[f"{node['type']} {_QNN_TYPES.get(number[1], '?')}{int(number[2:])} (HTP)"] += 1
        return dict(counts)


def profile_events(path: str) -> list[dict[str, Any]]:
    """What a profile of ONNX Runtime holds; versions below 1.31 write names into its JSON as they are."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return list(json.loads(_NAMES.sub(lambda found: json.dumps(found[0])[1:-1], text)))


def _profiled(events: list[dict[str, Any]]) -> dict[str, int]:
    """Operators in a profile of ONNX Runtime with one run; those of other providers than the CPU's with its name."""
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    counts: Counter[str] = Counter()
    for event in nodes:
        provider = event["args"]["provider"].replace("ExecutionProvider", "")
        counts[event["args"]["op_name"] + ("" if provider == "CPU" else f" ({provider})")] += 1
    return dict(counts)


class _OpenVino(Session):
    """OpenVINO's CPU plugin, with the float type of ``options`` or its own."""

    def open(self) -> None:
        openvino = import_module("openvino")
        self.version = openvino.__version__.split("-")[0]
        core = openvino.Core()
        config = {"INFERENCE_PRECISION_HINT": self.options["precision"]} if self.options.get("precision") else {}
        if self.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.threads
        try:
            model = core.read_model(self.path)
        except RuntimeError:  # of bytes it says what is wrong, of a file only that something is (2026.4)
            model = core.read_model(Path(self.path).read_bytes())
        self.compiled = core.compile_model(model, "CPU", config)

    def run(self, feeds: Feeds) -> Arrays:
        found = self.compiled(feeds)
        return [np.array(found[i]) for i in range(len(self.outputs))]

    def kernels(self) -> dict[str, int]:
        return openvino_kernels(self.compiled)


def openvino_kernels(compiled: Any) -> dict[str, int]:
    """Layers of a compiled model by type and the precision of the kernel that its execution graph names (I8, FP32, ...)."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, kernel = str(info["layerType"].value), str(info["primitiveType"].value)
        if kind not in {"Const", "Input", "Output"}:
            counts[f"{kind} {kernel.rsplit('_', 1)[-1].upper()}"] += 1
    return dict(counts)


class _OpenCv(Session):
    """OpenCV's dnn module with the engine that it takes of itself."""

    def open(self) -> None:
        cv2 = import_module("cv2")
        self.version = cv2.__version__
        if self.threads is not None:
            cv2.setNumThreads(self.threads)
        self.net = cv2.dnn.readNetFromONNX(self.path)

    def run(self, feeds: Feeds) -> Arrays:
        for name, array in feeds.items():
            self.net.setInput(array, name)
        if len(self.outputs) == 1:
            return [np.array(self.net.forward())]
        return [np.array(array) for array in self.net.forward(self.outputs)]

    def kernels(self) -> dict[str, int]:
        """Types of layers: those of integers have names of their own (Conv2Int8)."""
        return dict(Counter(self.net.getLayer(self.net.getLayerId(name)).type for name in self.net.getLayerNames()))


class _Tvm(Session):
    """TVM: Relax from ONNX, compiled for LLVM without tuning."""

    def open(self) -> None:
        if self.threads is not None:
            os.environ["TVM_NUM_THREADS"] = str(self.threads)
        tvm, onnx = import_module("tvm"), import_module("onnx")
        relax, frontend = import_module("tvm.relax"), import_module("tvm.relax.frontend.onnx")
        self.version, self.tensor = tvm.__version__, tvm.runtime.tensor
        self.module = frontend.from_onnx(onnx.load(self.path), keep_params_in_input=False)
        self.machine = relax.VirtualMachine(tvm.compile(self.module, target="llvm"), tvm.cpu())

    def run(self, feeds: Feeds) -> Arrays:
        found = self.machine["main"](*(self.tensor(array) for array in feeds.values()))
        return [found.numpy()] if hasattr(found, "numpy") else [one.numpy() for one in found]

    def kernels(self) -> dict[str, int]:
        """Operators of the imported module with the type of what they make."""
        pattern = r'R\.Tensor\([^=\n]*dtype="(\w+)"\) = R\.(?:nn\.)?(\w+)\('
        return dict(Counter(f"{op} {dtype}" for dtype, op in re.findall(pattern, self.module.script())))


class _Iree(Session):
    """IREE: imported, compiled for this processor and run on its CPU driver."""

    def open(self) -> None:
        tools, runtime = import_module("iree.compiler.tools"), import_module("iree.runtime")
        self.version, self.tools = metadata.version("iree-base-runtime"), tools
        importer = import_module("iree.compiler.tools.import_onnx.__main__")
        self.imported = str(self.folder / "model.mlir")
        importer.main(importer.parse_arguments([self.path, "-o", self.imported]))
        code = self._compiled("--iree-llvmcpu-target-cpu=host")
        if self.threads is not None:
            runtime.flags.parse_flags(f"--task_topology_max_group_count={self.threads}")
        context = runtime.SystemContext(config=runtime.Config("local-sync" if self.threads == 1 else "local-task"))
        module = runtime.VmModule.copy_buffer(context.instance, code)
        context.add_vm_module(module)
        entry = next(n for n in module.function_names if not n.startswith("_") and "$" not in n)
        self.function = context.modules[module.name][entry]

    def _compiled(self, *more: str) -> Any:
        arguments = list(more)
        return self.tools.compile_file(
            self.imported, input_type="onnx", target_backends=["llvm-cpu"], extra_args=arguments
        )

    def run(self, feeds: Feeds) -> Arrays:
        found = self.function(*feeds.values())
        return [np.asarray(one) for one in (found if isinstance(found, tuple | list) else [found])]

    def kernels(self) -> dict[str, int]:
        """Convolutions and products of the compiler's linear algebra, with the types of what they read, before they are fused."""
        text = bytes(self._compiled("--compile-to=preprocessing", "--mlir-elide-resource-strings-if-larger=8")).decode()
        pattern = r"linalg\.(\w*(?:conv|matmul)\w*)\b[^\n]*?ins\(([^)]*)\)"
        counts: Counter[str] = Counter()
        for op, inputs in re.findall(pattern, text):
            counts[f"{op} {'x'.join(re.findall(r'(?:x|<)([a-z]+[0-9]+)>', inputs))}"] += 1
        return dict(counts)


class _Qonnx(Session):
    """qonnx's execution, node by node; of a file in its form, through its conversion to Quant nodes."""

    def open(self) -> None:
        wrapper = import_module("qonnx.core.modelwrapper").ModelWrapper(self.path)
        self.version = metadata.version("qonnx")
        for value in wrapper.graph.input:
            if value.name in self.first:
                wrapper.set_tensor_shape(value.name, list(self.first[value.name].shape))
        wrapper = wrapper.transform(import_module("qonnx.transformation.infer_shapes").InferShapes())
        stored = [wrapper.get_initializer(n.input[0]) for n in wrapper.graph.node if n.op_type == "DequantizeLinear"]
        if stored and all(codes is None for codes in stored):  # of stored ones it takes the axis for another (1.0.0)
            wrapper = wrapper.transform(import_module("qonnx.transformation.qcdq_to_qonnx").QCDQToQuant())
        self.model, self.execute = wrapper, import_module("qonnx.core.onnx_exec").execute_onnx

    def run(self, feeds: Feeds) -> Arrays:
        found = self.execute(self.model, dict(feeds))
        return [found[name] for name in self.outputs]

    def kernels(self) -> dict[str, int]:
        """Operators of the graph, Quant nodes with the type of their codes."""
        return dict(Counter(map(self._kind, self.model.graph.node)))

    def _kind(self, node: Any) -> str:
        if node.op_type != "Quant":
            return str(node.op_type)
        width = float(np.asarray(self.model.get_initializer(node.input[3])).item())
        signed = next(a.i for a in node.attribute if a.name == "signed")
        return f"Quant {'INT' if signed else 'UINT'}{width:g}"


class _OnnxReference(Session):
    """onnx's reference evaluator, the standard in numpy."""

    def open(self) -> None:
        self.evaluator = import_module("onnx.reference").ReferenceEvaluator(self.path)
        self.version = import_module("onnx").__version__

    def run(self, feeds: Feeds) -> Arrays:
        return list(self.evaluator.run(None, feeds))

    def kernels(self) -> dict[str, int]:
        """Operators of the graph, which is run as it stands."""
        return dict(Counter(node.op_type for node in self.evaluator.proto_.graph.node))


class _Mnn(Session):
    """MNN, converted by its own converter.

    The converter is called where it lives, in the module ``_tools``: importing ``MNN.tools`` installs a package with pip and
    reports to its makers (3.6.1).
    """

    def open(self) -> None:
        self.mnn = import_module("MNN")
        self.version = str(self.mnn.version())
        made = str(self.folder / "model.mnn")
        arguments = ["-f", "ONNX", "--modelFile", self.path, "--MNNModel", made, "--bizCode", "none"]
        import_module("_tools").mnnconvert(["mnnconvert", *arguments])
        if not Path(made).is_file():
            raise RuntimeError("its converter made no file")
        self.net = self.mnn.Interpreter(made)
        config = {"numThread": self.threads or 4, "backend": "CPU", "precision": "high"}
        self.session = self.net.createSession(config)
        for name, tensor in self.net.getSessionInputAll(self.session).items():
            self.net.resizeTensor(tensor, self.first[name].shape)
        self.net.resizeSession(self.session)

    def run(self, feeds: Feeds) -> Arrays:
        self._feed(feeds)
        self.net.runSession(self.session)
        return [self._read(name) for name in self.outputs]

    def _feed(self, feeds: Feeds) -> None:
        for name, tensor in self.net.getSessionInputAll(self.session).items():
            tensor.copyFrom(self._host(feeds[name]))

    def _host(self, array: npt.NDArray[Any]) -> Any:
        kinds = {"float32": "Float", "int32": "Int", "int64": "Int64", "uint8": "Uint8"}
        kind = getattr(self.mnn, f"Halide_Type_{kinds[array.dtype.name]}")
        return self.mnn.Tensor(tuple(array.shape), kind, array, self.mnn.Tensor_DimensionType_Caffe)

    def _read(self, name: str) -> npt.NDArray[Any]:
        tensor = self.net.getSessionOutput(self.session, name)
        shape = tuple(tensor.getShape())
        host = self._host(np.zeros(shape, np.float32))
        tensor.copyToHostTensor(host)
        return np.array(host.getData(), np.float32).reshape(shape)

    def kernels(self) -> dict[str, int]:
        """Types of the operators that ran."""
        counts: Counter[str] = Counter()

        def count(_tensors: Any, info: Any) -> bool:
            counts[info.getType()] += 1
            return True

        self._feed(self.first)
        self.net.runSessionWithCallBackInfo(self.session, lambda *_: True, count)
        return dict(counts)


class _Ncnn(Session):
    """ncnn, converted by pnnx; one item a run."""

    def open(self) -> None:
        places = getattr(util.find_spec("pnnx"), "submodule_search_locations", None)
        if not places:
            raise RuntimeError("its converter pnnx is not installed")
        shapes = ",".join(f"[{','.join(map(str, array.shape))}]" for array in self.first.values())
        base = self.folder / "model"
        # The program itself: the module imports torch.
        program = str(Path(places[0]) / ("pnnx.exe" if os.name == "nt" else "pnnx"))
        made = [f"{kind}={base}.{kind}" for kind in _PNNX]
        command = [program, self.path, f"inputshape={shapes}", *made]
        subprocess.run(command, cwd=base.parent, check=True, preexec_fn=_end_with_this if os.name == "posix" else None)  # noqa: S603 - of the package
        ncnn = import_module("ncnn")
        self.version, self.mat = ncnn.__version__, ncnn.Mat
        self.net = ncnn.Net()
        self.net.opt.use_vulkan_compute = False
        if self.threads is not None:
            self.net.opt.num_threads = self.threads
        if self.net.load_param(f"{base}.ncnnparam") or self.net.load_model(f"{base}.ncnnbin"):
            raise RuntimeError(self._unknown(Path(f"{base}.ncnnparam"), ncnn) or "it does not open what pnnx made")

    @staticmethod
    def _unknown(file: Path, ncnn: Any) -> str:
        """Layers that pnnx left in and ncnn does not have."""
        lines = file.read_text(encoding="utf-8").splitlines()[2:] if file.is_file() else []
        kinds = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        missing = [kind for kind in kinds if ncnn.create_layer(kind) is None]
        return f"layers that it does not have: {', '.join(missing)}" if missing else ""

    def run(self, feeds: Feeds) -> Arrays:
        extractor = self.net.create_extractor()
        for name, array in zip(self.net.input_names(), feeds.values(), strict=True):
            extractor.input(name, self.mat(np.ascontiguousarray(array[0])))
        return [np.array(extractor.extract(name)[1])[None] for name in self.net.output_names()]

    def kernels(self) -> dict[str, int]:
        """Types of the layers."""
        return dict(Counter(layer.type for layer in self.net.layers()))


class _Tract(Session):
    """tract, optimized for its default runtime, which has one thread."""

    def open(self) -> None:
        tract = import_module("tract")
        self.version = tract.version()
        model = tract.onnx().load(self.path)
        self.names = [model.input_name(i) for i in range(model.input_count())]
        for i, name in enumerate(self.names):
            array = self.first[name]
            sizes = ",".join(map(str, array.shape))
            model.set_input_fact(i, f"{sizes},{array.dtype.kind}{8 * array.dtype.itemsize}")
        model.analyse()
        self.runnable = tract.runtime_for_name("default").prepare(model.into_model())

    def run(self, feeds: Feeds) -> Arrays:
        return [tensor.to_numpy() for tensor in self.runnable.run([feeds[name] for name in self.names])]

    def kernels(self) -> dict[str, int]:
        """Operators with what they multiply and add, as its profile counts it: FMA(F32)."""
        profile = self.runnable.profile_json([self.first[name] for name in self.names])
        found = json.loads(profile) if isinstance(profile, str) else profile
        return dict(Counter(" ".join([n["op_name"], *n.get("cost", {})]) for n in found["nodes"]))


#: Classes by the names that the catalogue's rows and the jobs have.
OPENERS: dict[str, type[Session]] = {
    "OnnxRuntime": _OnnxRuntime, "OpenVino": _OpenVino, "OpenCv": _OpenCv, "Tvm": _Tvm, "Iree": _Iree, "Qonnx": _Qonnx,
    "OnnxReference": _OnnxReference, "Mnn": _Mnn, "Ncnn": _Ncnn, "Tract": _Tract, "Qnn": _Qnn,
}  # fmt: skip

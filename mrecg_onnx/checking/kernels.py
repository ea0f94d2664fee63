"""Which integer kernels a file should have in ONNX Runtime, and how many of its layers run on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mrecg_onnx.writing import FLOAT_MATMUL, Exported

__all__ = ["expected_kernels", "integer_layers"]

#: Integer kernels ONNX Runtime's CPU provider has for the ops that the exporter leaves between quantizers.
_KERNELS = {
    "Add": "QLinearAdd",
    "AveragePool": "QLinearAveragePool",
    "Concat": "QLinearConcat",
    "Conv": "QLinearConv",
    "Gemm": "QGemm",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "LeakyRelu": "QLinearLeakyRelu",
    "MatMul": "QLinearMatMul",
    FLOAT_MATMUL: "MatMulIntegerToFloat",
    "Mul": "QLinearMul",
    "Sigmoid": "QLinearSigmoid",
    "Softmax": "QLinearSoftmax",
}
#: Those of them that run layers.
_LAYERS = frozenset({"MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul"})


def integer_layers(exported: Exported, expected: Mapping[str, int], fused: Mapping[str, int]) -> int:
    """How many layers run in integers where the runtime runs ``fused``: kernels of layers that are missing count against them."""
    missing = sum(max(0, n - fused.get(kernel, 0)) for kernel, n in expected.items() if kernel in _LAYERS)
    return max(0, sum(map(len, exported.integer_layers.values())) - missing)


def expected_kernels(exported: Exported, fused: Mapping[str, int]) -> dict[str, int]:
    """Kernels that the plan asks for and how many of each; ``fused``: the ops that ONNX Runtime runs, by type."""
    counts: Counter[str] = Counter()
    for table in (exported.integer_layers, exported.integer_ops):
        for op, names in table.items():
            if op in _KERNELS:
                counts[_KERNELS[op]] += len(names)
    # Where all sizes are known the runtime makes a Gemm of MatMul and bias, with a Reshape on either side.
    floats = _KERNELS[FLOAT_MATMUL]
    instead = min(max(0, fused.get("QGemm", 0) - counts["QGemm"]), max(0, counts[floats] - fused.get(floats, 0)))
    counts["QGemm"] += instead
    counts[floats] -= instead
    return {kernel: count for kernel, count in counts.items() if count}

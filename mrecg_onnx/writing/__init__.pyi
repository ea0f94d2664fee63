from .containers import FOUR_BITS, TWO_BITS, Contained, contained, container_of
from .qdq import FLOAT_MATMUL, WIDE_OPSET, Exported, export
from .retargeting import retarget, target_of

__all__ = [
    "FLOAT_MATMUL",
    "FOUR_BITS",
    "TWO_BITS",
    "WIDE_OPSET",
    "Contained",
    "Exported",
    "contained",
    "container_of",
    "export",
    "retarget",
    "target_of",
]

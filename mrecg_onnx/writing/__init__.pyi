from .containers import Contained, contained, container_of
from .exported import Exported
from .integer_nodes import FLOAT_MATMUL
from .opsets import FOUR_BITS, TWO_BITS, WIDE_OPSET
from .qdq import export
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

from .containers import Contained, contained, container_of, runnable
from .edited import as_written
from .exported import Exported
from .fixed_batch import fix_batch
from .integer_nodes import FLOAT_MATMUL
from .opsets import TWO_BITS
from .qdq import export
from .retargeting import retarget, target_of
from .rule_checks import remarks

__all__ = [
    "FLOAT_MATMUL",
    "TWO_BITS",
    "Contained",
    "Exported",
    "as_written",
    "contained",
    "container_of",
    "export",
    "fix_batch",
    "remarks",
    "retarget",
    "runnable",
    "target_of",
]

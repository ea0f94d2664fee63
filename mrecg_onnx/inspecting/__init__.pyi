from .estimating import Estimate, estimate
from .finished import FinishedFile, inspect_result, is_result
from .inspection import Inspection, Measured, TensorInfo, inspect
from .ranked import Quality, Ranked, Ranking
from .ranking import sensitivity

__all__ = [
    "Estimate",
    "FinishedFile",
    "Inspection",
    "Measured",
    "Quality",
    "Ranked",
    "Ranking",
    "TensorInfo",
    "estimate",
    "inspect",
    "inspect_result",
    "is_result",
    "sensitivity",
]

from .comparing import Comparison, compare
from .conversion import Conversion, convert
from .converters.errors import MrecgError
from .data import Preprocess
from .inspecting import FinishedFile, Inspection, Ranking, inspect, inspect_result, rank
from .litert import LiteRTFile, to_litert
from .planning import BitRule
from .quantization import QuantizationResult, quantize
from .reporting import report
from .settings import Settings
from .validating import Benchmark, ValidationResult, benchmark, validate

__all__ = [
    "Benchmark",
    "BitRule",
    "Comparison",
    "Conversion",
    "FinishedFile",
    "Inspection",
    "LiteRTFile",
    "MrecgError",
    "Preprocess",
    "QuantizationResult",
    "Ranking",
    "Settings",
    "ValidationResult",
    "benchmark",
    "compare",
    "convert",
    "inspect",
    "inspect_result",
    "quantize",
    "rank",
    "report",
    "to_litert",
    "validate",
]

__version__: str

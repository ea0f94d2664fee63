from .comparing import Comparison, compare
from .conversion import Conversion, convert
from .converters.errors import MrecgError
from .data import Preprocess, Samples
from .inspecting import Estimate, FinishedFile, Inspection, Ranking, estimate, inspect, inspect_result, sensitivity
from .litert import LiteRTFile, to_litert
from .measures import MeanIoU, Metric, mean_average_precision
from .planning import BitRule
from .progress import Progress
from .quantization import QuantizationResult, quantize
from .reporting import report
from .running import doctor, runtimes
from .settings import Settings
from .validating import Benchmark, ValidationResult, benchmark, validate

__all__ = [
    "Benchmark",
    "BitRule",
    "Comparison",
    "Conversion",
    "Estimate",
    "FinishedFile",
    "Inspection",
    "LiteRTFile",
    "MeanIoU",
    "Metric",
    "MrecgError",
    "Preprocess",
    "Progress",
    "QuantizationResult",
    "Ranking",
    "Samples",
    "Settings",
    "ValidationResult",
    "benchmark",
    "compare",
    "convert",
    "doctor",
    "estimate",
    "inspect",
    "inspect_result",
    "mean_average_precision",
    "quantize",
    "report",
    "runtimes",
    "sensitivity",
    "to_litert",
    "validate",
]

WAITS_LONG: bool
__version__: str

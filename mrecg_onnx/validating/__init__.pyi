from .benchmarking import Benchmark, FileReport, benchmark
from .input_ranges import ranges_entry
from .layer_errors import LayerError, LayerErrors, float_form, measure_layers, weight_factors, with_outputs
from .metadata import preprocess_of, source_sha256, stored_preprocess
from .pairing import chosen_outputs
from .results import Accuracy, ModelReport, ValidationResult
from .rowless import require_metric
from .validation import gain_warnings, validate
from .worth import guesses, worth_nothing
from .written_layers import WrittenLayer, int8_form, layers_of, stored_bits

__all__ = [
    "Accuracy",
    "Benchmark",
    "FileReport",
    "LayerError",
    "LayerErrors",
    "ModelReport",
    "ValidationResult",
    "WrittenLayer",
    "benchmark",
    "chosen_outputs",
    "float_form",
    "gain_warnings",
    "guesses",
    "int8_form",
    "layers_of",
    "measure_layers",
    "preprocess_of",
    "ranges_entry",
    "require_metric",
    "source_sha256",
    "stored_bits",
    "stored_preprocess",
    "validate",
    "weight_factors",
    "with_outputs",
    "worth_nothing",
]

from .benchmarking import Benchmark, FileReport, benchmark
from .input_ranges import INPUT_RANGES_KEY, ranges_entry
from .validation import (
    PREPROCESS_KEY,
    SOURCE_KEY,
    VERSION_KEY,
    Accuracy,
    ModelReport,
    ValidationResult,
    chosen_outputs,
    gain_warnings,
    size_bytes,
    source_sha256,
    stored_preprocess,
    validate,
)

__all__ = [
    "INPUT_RANGES_KEY",
    "PREPROCESS_KEY",
    "SOURCE_KEY",
    "VERSION_KEY",
    "Accuracy",
    "Benchmark",
    "FileReport",
    "ModelReport",
    "ValidationResult",
    "benchmark",
    "chosen_outputs",
    "gain_warnings",
    "ranges_entry",
    "size_bytes",
    "source_sha256",
    "stored_preprocess",
    "validate",
]

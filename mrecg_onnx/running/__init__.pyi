from .attempts import Attempt, RuntimesReport
from .batches import pad_batch, run_outputs, run_padded
from .catalogue import RUNTIMES, installed
from .environment import Finding, doctor
from .fresh_process import load, noise
from .kernel_counts import Kernel, check_provider, elsewhere, fused_op_counts, kernels
from .models import Model, describe, read_graph, require_room, size_bytes, specs_of
from .sessions import PROVIDERS, Level, fixed_batch, input_specs, open_session
from .target_runtimes import Opened, open_with
from .timing import (
    SITTINGS,
    InTurn,
    Seconds,
    all_runs,
    interval_text,
    is_noise,
    is_wide,
    latency,
    medians,
    ratio_interval,
    speedup_text,
)
from .trying import runtimes
from .versions import slower_here

__all__ = [
    "PROVIDERS",
    "RUNTIMES",
    "SITTINGS",
    "Attempt",
    "Finding",
    "InTurn",
    "Kernel",
    "Level",
    "Model",
    "Opened",
    "RuntimesReport",
    "Seconds",
    "all_runs",
    "check_provider",
    "describe",
    "doctor",
    "elsewhere",
    "fixed_batch",
    "fused_op_counts",
    "input_specs",
    "installed",
    "interval_text",
    "is_noise",
    "is_wide",
    "kernels",
    "latency",
    "load",
    "medians",
    "noise",
    "open_session",
    "open_with",
    "pad_batch",
    "ratio_interval",
    "read_graph",
    "require_room",
    "run_outputs",
    "run_padded",
    "runtimes",
    "size_bytes",
    "slower_here",
    "specs_of",
    "speedup_text",
]

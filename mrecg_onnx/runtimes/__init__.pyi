from .fresh_process import load, noise
from .kernel_counts import Kernel, check_provider, elsewhere, fused_op_counts, kernels
from .models import Model, describe, read_graph, size_bytes
from .running import run_padded
from .sessions import PROVIDERS, Level, fixed_batch, input_specs, open_session
from .target_runtimes import Opened, open_with
from .timing import latency, medians

__all__ = [
    "PROVIDERS",
    "Kernel",
    "Level",
    "Model",
    "Opened",
    "check_provider",
    "describe",
    "elsewhere",
    "fixed_batch",
    "fused_op_counts",
    "input_specs",
    "kernels",
    "latency",
    "load",
    "medians",
    "noise",
    "open_session",
    "open_with",
    "read_graph",
    "run_padded",
    "size_bytes",
]

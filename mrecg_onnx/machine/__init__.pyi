from .amounts import (
    byte_size,
    clock,
    cores,
    duration,
    figure,
    milliseconds,
    parse_byte_size,
    plain_zero,
    points,
    ratio,
)
from .cache import Pool, Region, Store, channels_last, give_back
from .device import full_precision, pick_device, use_threads
from .kept import NOTHING_KEPT, Kept, short_digest
from .lock import locked
from .needs import Needs
from .parallel import ALONE, Workers, is_first, joined, local_rank, world_size
from .quiet import silent
from .recording import Batch, Iterations
from .run import Run, open_run
from .settings import MOST_THREADS, MachineSettings
from .torch_cache import without_cache_folder
from .waiting import LEARNING

__all__ = [
    "ALONE",
    "LEARNING",
    "MOST_THREADS",
    "NOTHING_KEPT",
    "Batch",
    "Iterations",
    "Kept",
    "MachineSettings",
    "Needs",
    "Pool",
    "Region",
    "Run",
    "Store",
    "Workers",
    "byte_size",
    "channels_last",
    "clock",
    "cores",
    "duration",
    "figure",
    "full_precision",
    "give_back",
    "is_first",
    "joined",
    "local_rank",
    "locked",
    "milliseconds",
    "open_run",
    "parse_byte_size",
    "pick_device",
    "plain_zero",
    "points",
    "ratio",
    "short_digest",
    "silent",
    "use_threads",
    "without_cache_folder",
    "world_size",
]

from .cache import Pool, Region, Store, channels_last, default_memory, give_back
from .parallel import ALONE, Workers, is_first, joined, local_rank, local_size, world_size
from .recording import Batch, Iterations
from .settings import MachineSettings

__all__ = [
    "ALONE",
    "Batch",
    "Iterations",
    "MachineSettings",
    "Pool",
    "Region",
    "Store",
    "Workers",
    "channels_last",
    "default_memory",
    "give_back",
    "is_first",
    "joined",
    "local_rank",
    "local_size",
    "world_size",
]

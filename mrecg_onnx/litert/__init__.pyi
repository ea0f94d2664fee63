from .conversion import LiteRTFile, to_litert, write_litert
from .opening import run_litert

__all__ = ["LiteRTFile", "run_litert", "to_litert", "write_litert"]

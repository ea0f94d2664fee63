from .held import Fitting
from .settings import FinishSettings
from .stage import FinishResult, finish

__all__ = ["FinishResult", "FinishSettings", "Fitting", "finish"]

from .held import Fitting
from .settings import FinishSettings
from .stage import FinishResult, finish, finish_steps

__all__ = ["FinishResult", "FinishSettings", "Fitting", "finish", "finish_steps"]

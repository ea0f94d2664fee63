from .bitsplit import split_unit
from .lapq import Lapq, minimise_steps
from .learner import Learner
from .prefix import Prefix, UnitData
from .rates import default_rates
from .reconstruction import reconstruct_unit
from .settings import LearnerSettings, LearningSettings

__all__ = [
    "Lapq",
    "Learner",
    "LearnerSettings",
    "LearningSettings",
    "Prefix",
    "UnitData",
    "default_rates",
    "minimise_steps",
    "reconstruct_unit",
    "split_unit",
]

from .bias_correction import correct_biases
from .bitsplit import split_unit
from .checkpoint import Checkpoint
from .lapq import Lapq, minimise_steps
from .learner import Learner
from .prefix import Inputs, Prefix, UnitData
from .rates import LearningRates, default_rates
from .reconstruction import reconstruct_unit
from .settings import LearnerSettings, LearningSettings

__all__ = [
    "Checkpoint",
    "Inputs",
    "Lapq",
    "Learner",
    "LearnerSettings",
    "LearningRates",
    "LearningSettings",
    "Prefix",
    "UnitData",
    "correct_biases",
    "default_rates",
    "minimise_steps",
    "reconstruct_unit",
    "split_unit",
]

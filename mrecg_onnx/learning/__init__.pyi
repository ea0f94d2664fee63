from .bitsplit import split_unit
from .checkpoint import Checkpoint
from .descent import Descent, Group
from .held import Fitting
from .lapq import Lapq, minimise_steps
from .learner import Learner, probe_iters
from .masks import Masks
from .prefix import COPIES, Inputs, Prefix, UnitData
from .rates import default_rates
from .reconstruction import reconstruct_unit
from .settings import LearnerSettings, LearningSettings
from .trainable import Trainable
from .training_pass import TrainingPass

__all__ = [
    "COPIES",
    "Checkpoint",
    "Descent",
    "Fitting",
    "Group",
    "Inputs",
    "Lapq",
    "Learner",
    "LearnerSettings",
    "LearningSettings",
    "Masks",
    "Prefix",
    "Trainable",
    "TrainingPass",
    "UnitData",
    "default_rates",
    "minimise_steps",
    "probe_iters",
    "reconstruct_unit",
    "split_unit",
]

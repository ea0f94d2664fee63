from .settings import TargetSettings
from .target import CONTAINER_NAMES, LOW_BIT_OPSET, TARGET_NAMES, Target, load_target

__all__ = ["CONTAINER_NAMES", "LOW_BIT_OPSET", "TARGET_NAMES", "Target", "TargetSettings", "load_target"]

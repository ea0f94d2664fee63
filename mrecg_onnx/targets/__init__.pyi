from .needed_versions import (
    Requirement,
    longest_entry,
    note_requirements,
    requirements,
    stored_note,
    stored_requirements,
    unmet,
)
from .settings import TargetSettings
from .target import CONTAINER_NAMES, LOW_BIT_OPSET, TARGET_NAMES, Target, load_target

__all__ = [
    "CONTAINER_NAMES",
    "LOW_BIT_OPSET",
    "TARGET_NAMES",
    "Requirement",
    "Target",
    "TargetSettings",
    "load_target",
    "longest_entry",
    "note_requirements",
    "requirements",
    "stored_note",
    "stored_requirements",
    "unmet",
]

from .dataset import Dataset, check_lost
from .enough import FIT_ALONE
from .folders import find_files
from .frozen import Frozen, freeze
from .inputs import InputSpec
from .label_files import require_labels
from .labels import NO_LABELS, check_classes
from .opening import ZEROQ, holds_images, open_arrays, open_calibration, open_validation, require_values
from .preprocess import (
    COLORS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    LAYOUTS,
    NO_RESIZE,
    UNIT_SCALE,
    Preprocess,
)
from .profiles import PROFILES, PreprocessField, beside, for_images, profile, require_numbers
from .settings import RANGE_IMAGES, SAMPLES, DataSettings
from .sources import Data, Given, Labels, Samples, Source, given

__all__ = [
    "COLORS",
    "FIT_ALONE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "LAYOUTS",
    "NO_LABELS",
    "NO_RESIZE",
    "PROFILES",
    "RANGE_IMAGES",
    "SAMPLES",
    "UNIT_SCALE",
    "ZEROQ",
    "Data",
    "DataSettings",
    "Dataset",
    "Frozen",
    "Given",
    "InputSpec",
    "Labels",
    "Preprocess",
    "PreprocessField",
    "Samples",
    "Source",
    "beside",
    "check_classes",
    "check_lost",
    "find_files",
    "for_images",
    "freeze",
    "given",
    "holds_images",
    "open_arrays",
    "open_calibration",
    "open_validation",
    "profile",
    "require_labels",
    "require_numbers",
    "require_values",
]

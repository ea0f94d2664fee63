from .images import (
    ZEROQ,
    Dataset,
    InputSpec,
    Preprocess,
    check_lost,
    holds_images,
    open_calibration,
    open_validation,
    pad_batch,
)
from .labels import NO_LABELS, check_classes
from .preprocess import COLORS, IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, LAYOUTS, NO_RESIZE
from .profiles import PreprocessField, beside, for_images, profile, require_numbers

__all__ = [
    "COLORS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "LAYOUTS",
    "NO_LABELS",
    "NO_RESIZE",
    "ZEROQ",
    "Dataset",
    "InputSpec",
    "Preprocess",
    "PreprocessField",
    "beside",
    "check_classes",
    "check_lost",
    "for_images",
    "holds_images",
    "open_calibration",
    "open_validation",
    "pad_batch",
    "profile",
    "require_numbers",
]

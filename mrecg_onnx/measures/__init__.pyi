from .metrics import (
    OutputSums,
    add_sums,
    agreement,
    combined_error,
    decibels,
    mcnemar_p,
    sqnr_db,
    topk_correct,
    wilson_interval,
)
from .output_errors import OutputScales, image_errors, output_error, output_sums, with_float_outputs
from .predictions import Heads, Scores, likeness, prediction_output, scores_of, two_axes
from .task import task_loss

__all__ = [
    "Heads",
    "OutputScales",
    "OutputSums",
    "Scores",
    "add_sums",
    "agreement",
    "combined_error",
    "decibels",
    "image_errors",
    "likeness",
    "mcnemar_p",
    "output_error",
    "output_sums",
    "prediction_output",
    "scores_of",
    "sqnr_db",
    "task_loss",
    "topk_correct",
    "two_axes",
    "wilson_interval",
    "with_float_outputs",
]

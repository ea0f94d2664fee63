from .box_forms import named_detections
from .detection import mean_average_precision
from .given import as_numbers
from .metric import Metric, Scorer
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
from .naming import AnyMetric, metric_key, metric_of
from .output_errors import OutputScales, image_errors, output_error, output_sums, with_float_outputs
from .predictions import Heads, Scores, likeness, prediction_output, scores_of, two_axes
from .ready import READY
from .segmentation import MeanIoU
from .task import task_loss

__all__ = [
    "READY",
    "AnyMetric",
    "Heads",
    "MeanIoU",
    "Metric",
    "OutputScales",
    "OutputSums",
    "Scorer",
    "Scores",
    "add_sums",
    "agreement",
    "as_numbers",
    "combined_error",
    "decibels",
    "image_errors",
    "likeness",
    "mcnemar_p",
    "mean_average_precision",
    "metric_key",
    "metric_of",
    "named_detections",
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

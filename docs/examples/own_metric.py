"""A metric of one's own: the recall of the class that fares worst. Runs in a checkout, on the sample."""

import numpy as np

import mrecg_onnx


def worst_class(outputs, targets):
    """The share of right answers in the class with the fewest; outputs [N, classes], targets [N]."""
    right = outputs.argmax(1) == targets
    return min(right[targets == c].mean() for c in np.unique(targets))


MODEL, CALIB, DATA = "samples/digits.onnx", "samples/calib", "samples/val"
metric = mrecg_onnx.Metric(worst_class, percent=True)  # shown in percent, drops in points
settings = mrecg_onnx.Settings(wbits=3, abits=4, method="nearest")

result = mrecg_onnx.quantize(MODEL, CALIB, settings)
found = result.validate(DATA, metric=metric)
print(f"worst class {found.fp32.score:.1%} -> {found.quantized.score:.1%}")

ranked = mrecg_onnx.sensitivity(MODEL, CALIB, settings, data=DATA, metric=metric, top=3)
for suggestion in ranked.suggestions:
    print(f"{suggestion.option} '{suggestion.value}': {suggestion.quality.score:.1%}")

# The fewest bits that cost the worst class ten points at most.
least = mrecg_onnx.Settings(abits=8, method="nearest", max_drop=10.0)
result = mrecg_onnx.quantize(MODEL, CALIB, least, data=DATA, metric=metric)
print([(trial.average, round(trial.drop, 1)) for trial in result.trials])
result.save("digits_small.onnx")

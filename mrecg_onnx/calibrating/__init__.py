"""What calibration data decide before anything is learned.

Ranges of activations as the float network makes them and weights rounded to nearest, the sensitivity of single quantizers, and
images distilled from a network's own statistics where there are none (ZeroQ).
"""

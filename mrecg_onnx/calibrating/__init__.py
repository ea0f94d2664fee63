"""What calibration data decide before anything is learned.

Ranges of activations as the float network makes them and weights rounded to nearest, the sensitivity of single quantizers, and
images distilled from a network's own statistics where there are none (ZeroQ).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

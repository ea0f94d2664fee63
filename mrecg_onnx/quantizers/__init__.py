"""The mathematics of one quantizer: grids, roundings and the search for ranges, on plain tensors.

A :class:`Grid` (scale, zero point, codes) and its fake quantization with gradients, the learned roundings of a weight, and the
table of range estimators. Knows no graph and no image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Rounding and scales that are learned, unit after unit.

What a unit reads behind its quantized prefix, the windows it is trained on, the reconstruction loop, and the solvers beside it
(bit-split, LAPQ's joint search, bias correction), with finished units kept in a checkpoint.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

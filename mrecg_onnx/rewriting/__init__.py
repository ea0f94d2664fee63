"""Exact changes of the float graph that make it easier to quantize.

Channels are rescaled (cross-layer equalization), shifted (bias absorption) and given widths of their own (ACIQ); what the float
network computes stays.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

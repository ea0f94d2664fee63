"""What is quantized, at which widths, and in which units it is learned; before any number is seen.

An index over the normalized graph (who computes, passes on or reads a value), the placement of quantizers as the kernels of the
target want them, and the cut of the network into reconstruction units with their capacities and merges. The result is a
:class:`Plan`: plain data that can be printed, saved and tested without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

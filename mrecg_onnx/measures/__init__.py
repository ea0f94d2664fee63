"""How close two networks are, and what outputs are worth.

Signal-to-noise ratios and the errors of whole outputs, the loss of the task without labels, which outputs hold predictions, and
how sure one can be of a difference in accuracy. Metrics: the user's own, called safely, and ready ones for boxes and masks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

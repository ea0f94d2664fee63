"""Every layer its own width within a budget.

What each layer costs at each width, the integer program that chooses among them, the size of the packed file, and the search for
the fewest bits that keep the accuracy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

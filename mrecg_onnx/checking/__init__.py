"""Is the file what was learned?

Verification of a written model on its runtime against the simulation, and the search for the step at which the two part.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

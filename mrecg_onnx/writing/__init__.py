"""From the simulation to a file.

Q/DQ pairs written back into the user's own graph, brought to the form that a target's rules ask for, with codes in the container
that was chosen.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

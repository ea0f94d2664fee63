"""Methods at several widths on one model, side by side.

Every combination is a cell in a process of its own; the finished ones become tables and plots.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

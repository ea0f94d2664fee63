"""A result to look at: one page of HTML that needs nothing beside it.

Gathering (what a run found, and what is measured for the page on a few dozen images) knows nothing of drawing, and the template
nothing of models: in between stand plain parts, which all commands share. Whatever came from a model is escaped.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

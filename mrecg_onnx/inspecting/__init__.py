"""What quantization would do to a model, before it is done.

The plan of a model in words, and the ranking of its layers by what they lose.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

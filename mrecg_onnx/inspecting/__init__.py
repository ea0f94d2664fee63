"""What quantization would do to a model and take, before it is done, and what a finished file says of itself.

The plan of a model in words, the ranking of its layers by what they lose, and what a result's graph and metadata hold.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

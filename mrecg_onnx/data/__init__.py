"""Images and arrays as the inputs of a model.

What a graph wants to be fed (:class:`InputSpec`), how an image becomes that (:class:`Preprocess`, and the profiles that say it by
name or by file), which files of a folder or an archive are read, what their labels are, and the data set that hands them out in
batches. Needs neither torch nor ONNX Runtime.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

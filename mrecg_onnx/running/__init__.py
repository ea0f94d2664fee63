"""The runtimes that open files: ONNX Runtime in all its settings, and others where they are installed.

The one place that opens sessions, feeds them batch by batch, counts the kernels they run and times them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A quantized file as a flatbuffer of LiteRT, the runtime of phones and microcontrollers (TensorFlow Lite).

Written through the schema's own classes from the codes and scales that were learned, and run where LiteRT is installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The graph in torch: run in float, run quantized, value by value.

The bridge to torch at the batch at which it computes what ONNX Runtime does, the network as a list of steps that can be entered
anywhere, and its simulation with every quantizer in place: what the exported file computes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

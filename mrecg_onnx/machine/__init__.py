"""What the method needs of the machine: processes, memory, disk and recorded kernels.

Several processes that share the images and average gradients, a budget of memory with files behind it where cached activations
do not fit, decisions kept for the next run, and iterations that a GPU replays.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

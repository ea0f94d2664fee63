"""Where a quantized file is meant to run.

A target is a file of rules in ``targets/rules/``: opsets, widths, types and forms that a runtime takes. It is read here, checked
word by word, and asked by the rooms above; docs/deployment.md says where each rule comes from.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""How close two networks are.

Signal-to-noise ratios and the errors of whole outputs, the loss of the task without labels, which outputs hold predictions, and
how sure one can be of a difference in accuracy.
"""

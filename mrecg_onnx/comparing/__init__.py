"""Methods at several widths on one model, side by side.

Every combination is a cell in a process of its own; the finished ones become tables and plots.
"""

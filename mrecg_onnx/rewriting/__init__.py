"""Exact changes of the float graph that make it easier to quantize.

Channels are rescaled (cross-layer equalization), shifted (bias absorption) and given widths of their own (ACIQ); what the float
network computes stays.
"""

"""What quantization would do to a model, before it is done.

The plan of a model in words, and the ranking of its layers by what they lose.
"""

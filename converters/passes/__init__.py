"""Graph passes: one change each, from graph to graph, on ``onnx_ir`` models in place."""

"""The networks in PyTorch, under the parameter names of the released checkpoints.

A twin loads a released file with `strict=True`, is what ONNX export traces, and
is the peer of the JAX networks in tests and benchmarks.
"""

"""The networks in PyTorch, under the parameter names of the released checkpoints.

A twin loads a released file with `strict=True`. ONNX export traces twins, and tests and
benchmarks compare the JAX networks with them.
"""

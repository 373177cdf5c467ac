"""Export of a checkpoint to ONNX, compared with the Flax network."""

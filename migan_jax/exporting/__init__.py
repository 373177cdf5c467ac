"""From a checkpoint to an ONNX file that is known to do the same."""

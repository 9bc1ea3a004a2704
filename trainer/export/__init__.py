"""Export of trained models for serving: TensorFlow SavedModel, ONNX, and Triton model repositories."""

"""A trained model in the formats of servers: TensorFlow SavedModel, ONNX, a Triton model repository."""

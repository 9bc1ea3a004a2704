"""What a run shows while it runs: DLLogger lines, progress, TensorBoard, profiles."""

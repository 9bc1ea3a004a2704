"""What a run shows of itself: its log, progress, TensorBoard, profiles."""

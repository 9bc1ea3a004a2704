"""What one worker process has: its rank, devices, CPUs and standard streams."""

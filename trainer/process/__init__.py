"""A worker as a process: its rank, cores, devices, streams."""

"""Process setup of a worker: rank, CPU affinity, devices and standard streams."""

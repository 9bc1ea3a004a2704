"""What keeps a run safe: lock, workers' records, supervisor, signals, watchdog, comparisons of workers."""

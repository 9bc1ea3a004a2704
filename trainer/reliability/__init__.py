"""Fault tolerance: run lock, worker records, supervisor, signals, watchdog and consistency checks across workers."""

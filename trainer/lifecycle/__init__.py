"""Keeps a run alive: locks, signals, the watchdog, and the records of its workers."""

"""Keeps a run alive: locks, signals, the watchdog, the supervisor and its records."""

"""Errors of saving and loading checksummed folders."""


class CheckpointError(RuntimeError):
    """Data could not be saved, or saved data could not be loaded. The message names the path."""


class DamagedError(CheckpointError):
    """A folder differs from what was written. The message names the file and the difference."""

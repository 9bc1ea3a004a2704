"""What goes wrong with saved folders."""


class CheckpointError(RuntimeError):
    """A save that could not be done, or saved data that cannot be had. The message names the place."""


class DamagedError(CheckpointError):
    """A folder that is not what was once written. The message names the file and what is wrong with it."""

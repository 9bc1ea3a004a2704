"""What is raised for every mistake in a user's files or arguments."""


class DataError(ValueError):
    """Wrong input. The message says where, what was found, what was expected and what to do about it."""

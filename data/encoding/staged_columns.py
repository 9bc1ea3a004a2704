"""Names of the columns of staged rows besides the readings. They begin with "//", as no raw column does."""

# The number of a row, which its random draws depend on, and whether a training row is used.
ROW, KEPT = "//row", "//kept"


def finished(name: str) -> str:
    """Return the name of the staged column with the finished values of a label, weight or map feature."""
    return f"//={name}"

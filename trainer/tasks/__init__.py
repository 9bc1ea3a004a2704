"""Task types (a file each), the losses and the evaluation of all tasks, and loss weightings."""

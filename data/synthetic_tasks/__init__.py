"""Two synthetic regression tasks with a given correlation, as in the MMoE paper."""

"""Two regression tasks of a chosen correlation, as the MMoE paper makes them."""

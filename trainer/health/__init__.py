"""Whether gates still choose among experts, and experts still differ, while a model is trained."""

"""Programs that are copied into an export; they do not import anything from this project."""

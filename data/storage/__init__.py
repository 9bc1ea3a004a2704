"""Files and folders that are written atomically and read safely, with checksums where they are meant to last."""

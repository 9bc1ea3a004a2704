"""Short videos of the ICME 2019 understanding challenge (ByteDance): finish and like."""

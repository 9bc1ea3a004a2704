"""What a run's files say about it: curves as numbers and as pictures."""

"""Search for flags of main.py with Optuna."""

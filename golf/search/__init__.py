"""Search: trials that an Optuna study draws and stops, each a run like any other; the best is then tested anew."""

"""Training: what a run is, what it would take, and the one loop that runs it."""

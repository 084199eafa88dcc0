"""Training: what is computed, one step and its mapping onto devices."""

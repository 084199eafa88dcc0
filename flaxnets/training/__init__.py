"""Training: the computation of one step, and its mapping onto devices."""

"""Training: one step, its mapping onto devices, checkpoints, and the loop around them."""

"""What one does with trained networks."""

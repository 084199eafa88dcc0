"""Runs: what a training run is on disk, its loop, and its processes."""

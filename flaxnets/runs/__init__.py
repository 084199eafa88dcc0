"""Runs: a training run on disk, its loop, and its processes."""

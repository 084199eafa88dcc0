"""Measure the accuracy of trained networks: `python -m flaxnets.evaluate` in a checkout."""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

from flaxnets.evaluate import run

if __name__ == "__main__":
    run()

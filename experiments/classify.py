"""Classify pictures: `python -m flaxnets.classify` in a checkout."""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

from flaxnets.classify import run

if __name__ == "__main__":
    run()

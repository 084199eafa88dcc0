"""Train any network of the library: `python -m flaxnets.train` in a checkout."""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

from flaxnets.train import run

if __name__ == "__main__":
    run()

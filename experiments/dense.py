"""Draw where in a picture a network sees a class: `python -m flaxnets.dense` in a checkout."""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

from flaxnets.dense import run

if __name__ == "__main__":
    run()

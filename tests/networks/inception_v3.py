"""torchvision's Inception v3. Its auxiliary head needs images of 299 pixels, so the five training
steps here leave it out; tests/test_inception.py compares the gradients with it.
"""

import functools

from parity import Case
from tools.torchvision_import import torchvision

CASES = {
    "inception_v3": Case(
        27_161_264,
        sizes=(299, 160),
        train_size=139,  # 3x3 in the end: batch norms of few values amplify every rounding
        train_fields={"aux_logits": False},
        reference=functools.partial(torchvision.models.inception_v3, init_weights=False),
    ),
}

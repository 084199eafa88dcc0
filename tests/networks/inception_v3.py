"""torchvision's Inception v3. It is trained with fewer modules, of every kind, because five steps
then amplify rounding less.

It is trained without the auxiliary head, which needs images of 299 pixels.
tests/networks/test_inception.py compares the gradients of the head.
"""

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

KEPT = ("Mixed_5b", "Mixed_5c", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7b")


def inception_v3(modules: tuple[str, ...] | None = None, **fields) -> nn.Module:
    model = torchvision.models.inception_v3(init_weights=False, **fields)
    for name, _ in list(model.named_children()):
        if modules and name.startswith("Mixed") and name not in modules:
            setattr(model, name, nn.Identity())  # its input is as wide as its output
    return model


CASES = {
    "inception_v3": Case(
        27_161_264,
        sizes=(299, 160),
        train_size=107,
        train_optimization=1,
        batch=2,
        train_fields={"modules": KEPT, "aux_logits": False},
        reference=inception_v3,
    ),
}
SMALL = {
    "inception_v3": Small({"modules": KEPT}, 107, 2, 75),
}
HEAD = "fc"

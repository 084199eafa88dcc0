"""Network in network, layer by layer as in the authors' files, with the names of our tree."""

from collections import OrderedDict

from torch import nn

from parity import Case, Small


def mlpconv(
    channels: int, widths: tuple[int, int, int], kernel_size: int, stride: int, padding: int
) -> nn.Module:
    a, b, c = widths
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, a, kernel_size, stride, padding), relu=nn.ReLU(),
            cccp1=nn.Conv2d(a, b, 1), relu1=nn.ReLU(),
            cccp2=nn.Conv2d(b, c, 1), relu2=nn.ReLU(),
        )
    )  # fmt: skip


def pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def head() -> dict[str, nn.Module]:
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}


def he_normal(model: nn.Module) -> nn.Module:
    """Initialise a network with He's weights. With torch's default the images fade, and the logits
    would be biases only.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def nin_cifar(num_classes: int = 10) -> nn.Module:
    layers = nn.Sequential(
        OrderedDict(
            mlpconv1=mlpconv(3, (192, 160, 96), 5, 1, 2), pool1=pool(), drop1=nn.Dropout(),
            mlpconv2=mlpconv(96, (192, 192, 192), 5, 1, 2), pool2=pool(), drop2=nn.Dropout(),
            mlpconv3=mlpconv(192, (192, 192, num_classes), 3, 1, 1), **head(),
        )
    )  # fmt: skip
    return he_normal(layers)


def nin_imagenet(num_classes: int = 1000) -> nn.Module:
    layers = nn.Sequential(
        OrderedDict(
            mlpconv1=mlpconv(3, (96, 96, 96), 11, 4, 0), pool1=pool(),
            mlpconv2=mlpconv(96, (256, 256, 256), 5, 1, 2), pool2=pool(),
            mlpconv3=mlpconv(256, (384, 384, 384), 3, 1, 1), pool3=pool(), drop=nn.Dropout(),
            mlpconv4=mlpconv(384, (1024, 1024, num_classes), 3, 1, 1), **head(),
        )
    )  # fmt: skip
    return he_normal(layers)


# The same rows with few channels. Dropout follows the pools as in the authors' two files.
THIN = {
    "nin_cifar": (
        (5, 1, 2, (8, 6, 4), (0.3,) * 3, True),
        (5, 1, 2, (8, 8, 8), (0.3,) * 3, True),
        (3, 1, 1, (8, 8), (0.3,) * 3, False),
    ),
    "nin_imagenet": (
        (11, 4, 0, (8, 8, 8), (0.2,) * 3, False),
        (5, 1, 2, (8, 8, 8), (0.3,) * 3, False),
        (3, 1, 1, (8, 8, 8), (0.3,) * 3, True),
        (3, 1, 1, (8, 8), (0.3,) * 3, False),
    ),
}
CASES = {
    # The paper gives no counts. nin_imagenet's weights fill the 29 MB of the authors' Caffe file.
    "nin_cifar": Case(966_986, sizes=(32, 27), train_size=16, reference=nin_cifar),
    "nin_imagenet": Case(7_595_176, train_size=67, train_optimization=1, reference=nin_imagenet),
}
SMALL = {
    "nin_cifar": Small({"mlpconvs": THIN["nin_cifar"]}, 12, 3, 4, recomputed=3),
    "nin_imagenet": Small({"mlpconvs": THIN["nin_imagenet"]}, 99, 2, 39, recomputed=4),
}
HEAD = "mlpconv3.cccp2"

"""timm's Inception-ResNet-v2, and version 1 written from the figures of arXiv:1602.07261.

Both are compared with two residual blocks on each grid and trained with one, to save time.
"""

import timm
import torch
from torch import nn

from parity import Case, Small


def inception_resnet_v2(
    depths: tuple[int, int, int] = (10, 20, 9), num_classes: int = 1000
) -> nn.Module:
    model = timm.create_model("inception_resnet_v2", num_classes=num_classes)
    for name, depth in zip(("repeat", "repeat_1", "repeat_2"), depths, strict=True):
        setattr(model, name, getattr(model, name)[:depth])
    return model


class Conv(nn.Module):
    """A convolution of the figures. "V" means valid padding; the others keep the size of the
    grid.
    """

    def __init__(self, n_in, n_out, height, width, stride=1, v=False):
        super().__init__()
        padding = (0, 0) if v else (height // 2, width // 2)
        self.conv = nn.Conv2d(n_in, n_out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Concat(nn.Module):
    def __init__(self, **branches):
        super().__init__()
        for name, module in branches.items():
            self.add_module(name, module)
        self.names = list(branches)

    def forward(self, x):
        return torch.cat([getattr(self, name)(x) for name in self.names], 1)


class Residual(Concat):
    def __init__(self, n, n_joint, scale, **branches):
        super().__init__(**branches)
        self.conv2d = nn.Conv2d(n_joint, n, 1)  # "1x1 Conv (n Linear)"
        self.scale = scale

    def forward(self, x):
        return (x + self.scale * self.conv2d(super().forward(x))).relu()


def inception_resnet_a() -> nn.Module:  # Figure 10
    return Residual(
        256, 96, 0.17,
        branch0=Conv(256, 32, 1, 1),
        branch1=nn.Sequential(Conv(256, 32, 1, 1), Conv(32, 32, 3, 3)),
        branch2=nn.Sequential(Conv(256, 32, 1, 1), Conv(32, 32, 3, 3), Conv(32, 32, 3, 3)),
    )  # fmt: skip


def inception_resnet_b() -> nn.Module:  # Figure 11
    seven = nn.Sequential(Conv(896, 128, 1, 1), Conv(128, 128, 1, 7), Conv(128, 128, 7, 1))
    return Residual(896, 256, 0.10, branch0=Conv(896, 128, 1, 1), branch1=seven)


def inception_resnet_c() -> nn.Module:  # Figure 13
    three = nn.Sequential(Conv(1792, 192, 1, 1), Conv(192, 192, 1, 3), Conv(192, 192, 3, 1))
    return Residual(1792, 384, 0.20, branch0=Conv(1792, 192, 1, 1), branch1=three)


class InceptionResnetV1(nn.Module):
    def __init__(self, depths=(5, 10, 5), num_classes=1000):
        super().__init__()
        self.conv2d_1a = Conv(3, 32, 3, 3, 2, v=True)  # Figure 14
        self.conv2d_2a = Conv(32, 32, 3, 3, v=True)
        self.conv2d_2b = Conv(32, 64, 3, 3)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = Conv(64, 80, 1, 1)
        self.conv2d_4a = Conv(80, 192, 3, 3, v=True)
        self.conv2d_4b = Conv(192, 256, 3, 3, 2, v=True)
        self.repeat = nn.Sequential(*[inception_resnet_a() for _ in range(depths[0])])
        self.mixed_6a = Concat(  # Figure 7; Table 1: k=192, l=192, m=256, n=384
            branch0=Conv(256, 384, 3, 3, 2, v=True),
            branch1=nn.Sequential(
                Conv(256, 192, 1, 1), Conv(192, 192, 3, 3), Conv(192, 256, 3, 3, 2, v=True)
            ),
            branch2=nn.MaxPool2d(3, 2),
        )
        self.repeat_1 = nn.Sequential(*[inception_resnet_b() for _ in range(depths[1])])
        self.mixed_7a = Concat(  # Figure 12
            branch0=nn.Sequential(Conv(896, 256, 1, 1), Conv(256, 384, 3, 3, 2, v=True)),
            branch1=nn.Sequential(Conv(896, 256, 1, 1), Conv(256, 256, 3, 3, 2, v=True)),
            branch2=nn.Sequential(
                Conv(896, 256, 1, 1), Conv(256, 256, 3, 3), Conv(256, 256, 3, 3, 2, v=True)
            ),
            branch3=nn.MaxPool2d(3, 2),
        )
        self.repeat_2 = nn.Sequential(*[inception_resnet_c() for _ in range(depths[2])])
        self.dropout = nn.Dropout(0.2)  # Figure 15
        self.classif = nn.Linear(1792, num_classes)

    def forward(self, x):
        *features, dropout, classif = self.children()
        for module in features:
            x = module(x)
        return classif(dropout(x.mean((2, 3))))


CASES = {
    "inception_resnet_v1": Case(
        22_756_328,
        sizes=(299, 139),
        cut_fields={"depths": (2, 2, 2)},
        train_size=107,
        train_optimization=1,
        batch=2,
        train_fields={"depths": (1, 1, 1)},
        reference=InceptionResnetV1,
    ),
    "inception_resnet_v2": Case(
        55_843_464,
        sizes=(299, 139),
        cut_fields={"depths": (2, 2, 2)},
        train_size=107,
        train_optimization=1,
        batch=2,
        train_fields={"depths": (1, 1, 1)},
        reference=inception_resnet_v2,
    ),
}
SMALL = {
    "inception_resnet_v1": Small({"depths": (1, 1, 1)}, 107, 2, 75),
    "inception_resnet_v2": Small({"depths": (1, 1, 1)}, 107, 2, 75),
}
HEAD = "classif"

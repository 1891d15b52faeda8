"""DenseNet-161 in plain torch (Huang et al., "Densely Connected Convolutional Networks", 2017, table 1, k = 48).

A model.py as TorchServe's archives have it: one class, made without arguments. It is packed by conftest.py.
"""

import torch
from torch import nn

LAYERS = (6, 12, 36, 24)
GROWTH = 48
FEATURES = 96
BOTTLENECK = 4
CLASSES = 1000


def layer(features):
    """Batch norm, 1 x 1 to 4k channels, batch norm, 3 x 3 to k channels."""
    wide = BOTTLENECK * GROWTH
    return nn.Sequential(
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
        nn.Conv2d(features, wide, 1, bias=False),
        nn.BatchNorm2d(wide),
        nn.ReLU(inplace=True),
        nn.Conv2d(wide, GROWTH, 3, padding=1, bias=False),
    )


def transition(features):
    """Half the channels, half the size."""
    return nn.Sequential(
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
        nn.Conv2d(features, features // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


def stem():
    """A quarter of the size, 96 channels."""
    return nn.Sequential(
        nn.Conv2d(3, FEATURES, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(FEATURES),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


class DenseNet161(nn.Module):
    """Pictures [n, 3, 224, 224] to logits [n, 1000]."""

    def __init__(self):
        super().__init__()
        self.stem = stem()
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        features = FEATURES
        for count in LAYERS:
            self.blocks.append(nn.ModuleList(layer(features + GROWTH * index) for index in range(count)))
            features += GROWTH * count
            if len(self.blocks) < len(LAYERS):
                self.transitions.append(transition(features))
                features //= 2
        self.norm = nn.BatchNorm2d(features)
        self.classifier = nn.Linear(features, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            for one in block:
                x = torch.cat((x, one(x)), dim=1)
            if index < len(self.transitions):
                x = self.transitions[index](x)
        return self.classifier(torch.relu(self.norm(x)).mean(dim=(2, 3)))

"""What is trained: prototypes on frozen features, or on a small convolutional network."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

LOGIT_SCALE = 20.0
"""Logits are cosines times this. A softmax over 100 classes is then sharp, but not saturated."""

WIDTH = 64


class ClusterNetwork(nn.Module):
    """Heads of cosine prototypes on a shared trunk; inputs (B, ...) to logits (heads, B, K)."""

    def __init__(self, trunk: nn.Module, heads: int, n_classes: int, n_features: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.prototypes = nn.Parameter(torch.zeros(heads, n_classes, n_features))

    def forward(self, inputs: Tensor) -> Tensor:
        directions = normalize(self.trunk(inputs), dim=1)
        return LOGIT_SCALE * directions @ normalize(self.prototypes, dim=2).mT

    @torch.no_grad()
    def start_at(self, directions: Tensor) -> None:
        """Move the prototypes (heads, K, D); entries of size 1 suit Adam's equal steps."""
        scale = math.sqrt(directions.shape[2])
        self.prototypes.copy_(scale * normalize(directions, dim=2))


def read_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what `torch.save` wrote, running no code of the file; refuse a damaged one by name."""
    try:
        return torch.load(path, device, weights_only=True)
    except Exception as error:  # garbage ends in errors of any kind
        raise ValueError(f"{path} cannot be read by Torch ({type(error).__name__})") from error


def small_convolutional_trunk(channels: int) -> nn.Module:
    """Return a network from images of any size to `WIDTH` features."""
    half = WIDTH // 2
    return nn.Sequential(
        nn.Conv2d(channels, half, 3, padding=1),
        nn.GroupNorm(4, half),
        nn.ReLU(),
        nn.Conv2d(half, WIDTH, 3, padding=1, stride=2),
        nn.GroupNorm(8, WIDTH),
        nn.ReLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * WIDTH, WIDTH),
    )

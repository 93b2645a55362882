"""Disturbed views of the samples: what a cluster must not depend on."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

DROPOUT = 0.1  # share of the features that are set to 0
NOISE = 0.1  # standard deviation, in units of the features' root mean square
LARGEST_SHIFT = 0.15  # of half the side of an image
LARGEST_ROTATION = math.radians(12)


def disturbed(inputs: Tensor, random: torch.Generator) -> Tensor:
    """Return another view of features (B, D), or of images (B, channels, height, width)."""
    return _moved(inputs, random) if inputs.ndim == 4 else _blurred(inputs, random)


def _blurred(features: Tensor, random: torch.Generator) -> Tensor:
    """Drop features out and add noise."""
    options = {"generator": random, "device": features.device}
    kept = torch.rand(features.shape, **options) >= DROPOUT
    noise = torch.randn(features.shape, **options)
    return (features + NOISE * features.square().mean().sqrt() * noise) * kept


def _moved(images: Tensor, random: torch.Generator) -> Tensor:
    """Rotate and shift each image a little."""
    uniform = 2 * torch.rand((3, len(images)), generator=random, device=images.device) - 1
    angle, shifts = LARGEST_ROTATION * uniform[0], LARGEST_SHIFT * uniform[1:]
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, -sin, shifts[0]], 1), torch.stack([sin, cos, shifts[1]], 1)]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)

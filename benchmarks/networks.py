"""Networks of about 10 million parameters, whose training step pseudo-labels are compared with."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import normalize

LOGIT_SCALE = 10.0
TOKENS, TOKEN_SIZE = 64, 48
"""An image of 32 x 32 pixels in three colours, cut into patches of 4 x 4."""


class CosineHeads(nn.Module):
    """Heads of cosine prototypes on a trunk; inputs (..., B, D) to logits (heads, ..., B, K)."""

    def __init__(self, trunk, heads, classes, width):
        super().__init__()
        self.trunk = trunk
        self.prototypes = nn.Parameter(torch.randn(heads, classes, width))

    def forward(self, inputs):
        directions = normalize(self.trunk(inputs.flatten(0, -2)), dim=-1)
        cosines = directions @ normalize(self.prototypes, dim=-1).mT
        return LOGIT_SCALE * cosines.unflatten(1, inputs.shape[:-1])

    @torch.no_grad()
    def start_at(self, examples):
        """Move the prototypes to what the trunk makes of examples (heads, K, n, D) of each."""
        outputs = self.trunk(examples.flatten(0, -2)).unflatten(0, examples.shape[:-1])
        scale = outputs.shape[-1] ** 0.5  # entries of size 1 suit Adam's equal steps
        self.prototypes.copy_(scale * normalize(outputs.mean(dim=-2), dim=-1))


class Transformer(nn.Module):
    """A small vision transformer on images that a fixed random map makes of the features."""

    def __init__(self, features, width, layers):
        super().__init__()
        image = torch.randn(features, TOKENS * TOKEN_SIZE) / features**0.5
        self.register_buffer("image", image)
        self.embed = nn.Linear(TOKEN_SIZE, width)
        self.positions = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=6, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, features):
        patches = (features @ self.image).unflatten(1, (TOKENS, TOKEN_SIZE))
        return self.encoder(self.embed(patches) + self.positions).mean(dim=1)


def perceptron(widths):
    """Return linear layers from each width to the next, ReLU between them, centred at the end.

    Without the centre all outputs would share one direction, and cosines tell little.
    """
    layers = [nn.Linear(*ends) for ends in pairwise(widths)]
    parts = [part for layer in layers for part in (layer, nn.ReLU())]
    return nn.Sequential(*parts[:-1], nn.BatchNorm1d(widths[-1], affine=False))


def count_parameters(network):
    """Return the number of parameters that are trained."""
    return sum(parameter.numel() for parameter in network.parameters())

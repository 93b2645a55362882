"""What the tests of a training loop share: its batches, their graph, and a checkpoint."""

import io

import numpy as np
import pytest
from problems import random_graph

torch = pytest.importorskip("torch", reason="training is Torch's")

CLASSES = 4
SAMPLES = 60
GRAPH = random_graph(0, SAMPLES, signed=False)


def random_logits(seed, *shape, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


def batches(steps, size=12, leading=(), seed=0):
    """Return logits and ids of the batches of a training run."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        ids = torch.from_numpy(rng.permutation(SAMPLES)[:size])
        yield random_logits(100 * seed + step, *leading, size, CLASSES), ids


def through_a_file(state):
    """Return what a checkpoint gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)

"""What pseudo-labels take of a training step: next to the network, in the same steps of one run.

Gaussian clusters on the sphere with long-tailed sizes stand for frozen features. A perceptron with
two heads of cosine prototypes learns from two views by swapped prediction, while the ramp goes from
its start to its end. Its logits go to three labelers: of one head and view, of one head and both
views, and of all heads and views, whose labels are learnt. The transformer learns the same labels
in one step at each point of the ramp.

The network's time is that of forward pass, loss, backward pass and update; the labels' that of the
call of a `PseudoLabeler`, bank and graph included. Samples come in one order, round after round, so
that a full bank stays full. The ramp takes some hundred steps instead of many thousands: between
two of them rho, and with it the plan, moves farther than in real training.
"""

import time
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import normalize

import ssot
from benchmarks.hard_problems import long_tail
from benchmarks.networks import CosineHeads, Transformer, count_parameters, perceptron
from benchmarks.timing import timed
from ssot.training import PseudoLabeler, swapped_cross_entropy

NAME = "training-step"
PROGRESS = 0.1, 0.5, 0.9
HEADS, VIEWS = 2, 2
LABELLED = {
    "one head, one view": (0, 0),
    "one head, two views": (0,),
    "two heads, two views": (),
}
"""Which logits, of (heads, views, B, K), each labeler is given."""

SPREAD = 3.0
"""Standard deviation around a class's centre, in each dimension; centres have 1."""

VIEW_NOISE = 0.3
"""Standard deviation of a view around its sample, whose own is 1 in each dimension."""

EXAMPLES = 5
"""Samples of each class, as many as the smallest has, whose mean a prototype starts from."""

LEARNING_RATE = 1e-4
PIECE = 64
"""Samples that the transformer learns at a time, to keep its memory small."""


@dataclass(frozen=True)
class Size:
    """Of data, bank, run and networks.

    Attributes
    ----------
    steps : int
        Of the whole ramp.
    window : int
        Steps that are timed at each point of the ramp, an odd number.
    """

    classes: int
    features: int
    bank: int
    batch: int
    steps: int
    window: int
    hidden: tuple[int, ...]
    transformer: tuple[int, int]

    @property
    def capacity(self):
        """Samples that are solved for together: the bank and a batch."""
        return self.bank + self.batch

    def windows(self):
        """Return for each point of the ramp the steps that are timed, counted from 1."""
        centres = [round(progress * self.steps) for progress in PROGRESS]
        half = self.window // 2
        return [range(centre - half, centre + half + 1) for centre in centres]


FULL = Size(100, 384, 5120, 512, 210, 21, hidden=(2048, 2048, 2048), transformer=(384, 6))
QUICK = Size(10, 32, 64, 64, 30, 3, hidden=(64,), transformer=(24, 1))


class Data:
    """Features (N, D) of unit variance in each dimension, their classes, and batches of them."""

    def __init__(self, size):
        rng = np.random.default_rng(0)
        sizes = long_tail(size.classes)
        self.labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(size.classes), sizes)))
        centres = rng.standard_normal((size.classes, size.features), dtype=np.float32)
        noise = rng.standard_normal((len(self.labels), size.features), dtype=np.float32)
        points = torch.from_numpy(centres[self.labels] + np.float32(SPREAD) * noise)
        directions = normalize(points, dim=1)
        self.graph = ssot.knn_graph(directions.numpy(), k=20)
        self.features = size.features**0.5 * directions
        self.batch = size.batch
        self.random = torch.Generator().manual_seed(0)

    def ids(self, step):
        """Return the samples (B,) of a step."""
        start = (step - 1) * self.batch
        return torch.arange(start, start + self.batch) % len(self.labels)

    def views(self, ids):
        """Return noisy copies (views, B, D) of samples."""
        rows = self.features[ids].expand(VIEWS, -1, -1)
        return rows + VIEW_NOISE * torch.randn(rows.shape, generator=self.random)

    def examples(self):
        """Return features (K, EXAMPLES, D) of some samples of each class."""
        order = torch.randperm(len(self.labels), generator=self.random)
        order = order[self.labels[order].argsort(stable=True)]
        first = torch.searchsorted(self.labels[order], self.labels.unique())
        return self.features[order[first[:, None] + torch.arange(EXAMPLES)]]


def measure(is_quick):
    """Return what was trained on what, and the times at each point of the ramp."""
    size = QUICK if is_quick else FULL
    data = Data(size)
    networks = _networks(size, data)
    run = _Run(size, data, networks)
    points = {step: index for index, window in enumerate(size.windows()) for step in window}
    steps = [[] for _ in PROGRESS]
    for step in range(1, max(points) + 1):
        _, record = timed(partial(run.step, step))
        if step in points:
            steps[points[step]].append(record)
    return {
        "classes": size.classes,
        "samples": len(data.labels),
        "batch": size.batch,
        "held": min(each["held"] for records in steps for each in records),
        "networks": {
            name: {"layers": layers, "parameters": count_parameters(network)}
            for name, (network, layers) in networks.items()
        },
        "points": [
            {"progress": progress} | _summary(records)
            for progress, records in zip(PROGRESS, steps, strict=True)
        ],
    }


def _networks(size, data):
    """Return the networks and what they are made of, by name."""
    widths = (size.features, *size.hidden, size.features)
    width, layers = size.transformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = CosineHeads(perceptron(widths), HEADS, size.classes, size.features)
        trunk = Transformer(size.features, width, layers)
        transformer = CosineHeads(trunk, HEADS, size.classes, width)
    mlp.start_at(torch.stack([data.examples() for _ in range(HEADS)]))
    heads = f"{HEADS} heads of {size.classes} prototypes"
    return {
        "perceptron": (mlp, f"linear {'-'.join(map(str, widths))}, {heads}"),
        "transformer": (
            transformer,
            f"{layers} encoder layers of width {width} on 64 tokens, {heads}",
        ),
    }


class _Run:
    """One training, and the clocks of its parts."""

    def __init__(self, size, data, networks):
        self.data = data
        self.mlp, self.transformer = (network for network, _ in networks.values())
        self.centres = {window[len(window) // 2] for window in size.windows()}
        self.optimizers = {
            network: torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
            for network, _ in networks.values()
        }
        self.labelers = {
            name: PseudoLabeler(
                size.steps, capacity=size.capacity, graph=data.graph, on_failure="return"
            )
            for name in LABELLED
        }

    def step(self, step):
        """Train one step; return the seconds of its parts, and what the labels are like."""
        ids = self.data.ids(step)
        views = self.data.views(ids)
        forward, logits = clocked(partial(self.mlp, views))
        seconds, statuses = {}, {}
        for name, part in LABELLED.items():
            seconds[name], labels = clocked(partial(self.labelers[name], logits[part], ids))
            statuses[name] = [status.name for status in labels.solutions.status]
        backward, _ = clocked(partial(self._learn, logits, labels.targets))
        networks = {"perceptron": forward + backward}
        if step in self.centres:
            call = partial(self._learn_in_pieces, views, labels.targets)
            networks["transformer"], _ = clocked(call)
        hits = logits.detach().argmax(dim=-1) == self.data.labels[ids]
        return {
            "rho": labels.rho,
            "held": len(labels.ids),
            "accuracy": float(hits.float().mean()),
            "seconds": seconds,
            "statuses": statuses,
            "networks": networks,
        }

    def _learn(self, logits, targets):
        optimizer = self.optimizers[self.mlp]
        optimizer.zero_grad()
        swapped_cross_entropy(logits, targets).backward()
        optimizer.step()

    def _learn_in_pieces(self, views, targets):
        optimizer = self.optimizers[self.transformer]
        optimizer.zero_grad()
        pieces = zip(views.split(PIECE, dim=1), targets.split(PIECE, dim=2), strict=True)
        for part, wanted in pieces:
            share = part.shape[1] / views.shape[1]
            (share * swapped_cross_entropy(self.transformer(part), wanted)).backward()
        optimizer.step()


def clocked(call):
    """Return the seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _summary(records):
    """Return medians over the steps at one point of the ramp, and all their times."""
    networks = {
        name: _times([each["networks"][name] for each in records if name in each["networks"]])
        for name in ("perceptron", "transformer")
    }
    labels = {}
    for name in LABELLED:
        times = _times([each["seconds"][name] for each in records])
        ratios = {other: times["median"] / found["median"] for other, found in networks.items()}
        ended = Counter(status for each in records for status in each["statuses"][name])
        labels[name] = times | {"ratios": ratios, "statuses": dict(ended)}
    return {
        "rho": [records[0]["rho"], records[-1]["rho"]],
        "accuracy": float(np.mean([each["accuracy"] for each in records])),
        "networks": networks,
        "labels": labels,
    }


def _times(seconds):
    return {"median": float(np.median(seconds)), "seconds": seconds}

"""The training loop: pseudo-labels from optimal transport, a network that learns them, in turns.

Each round makes pseudo-labels of all samples, or batch after batch with a memory bank, and the
network learns them on disturbed views.
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from ssot.training import AdaptivePrior, PseudoLabeler, soft_cross_entropy

from .methods import Method
from .networks import ClusterNetwork, read_state, small_convolutional_trunk
from .selection import modularity
from .starts import Start
from .views import disturbed

LARGEST_BLOCK = 8192  # samples that the network predicts at a time
STEPS_TO_START = 12  # in which a network from scratch learns the clusters it starts at


@dataclass(frozen=True)
class Settings:
    """How to train, the same for all methods.

    Attributes
    ----------
    heads
        Classifiers trained side by side from different starts, of which one is kept.
    rounds
        Times that all samples get pseudo-labels.
    updates
        Gradient steps between pseudo-labels; with a memory bank it is always one.
    batch
        Samples in a gradient step.
    bank
        Samples that are solved for together: all, or with 0 < bank < N a memory bank of so many,
        with labels for `batch` new ones at a time.
    learning_rate, trunk_learning_rate
        Of prototypes and of a network from scratch.
    """

    heads: int = 3
    rounds: int = 15
    updates: int = 12
    batch: int = 4096
    bank: int = 0
    learning_rate: float = 0.02
    trunk_learning_rate: float = 0.002

    def __post_init__(self) -> None:
        for name in ("heads", "rounds", "updates", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("learning_rate", "trunk_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if self.bank != 0 and self.bank < self.batch:
            raise ValueError(
                f"bank must be 0, for all samples, or hold a batch of {self.batch}, got "
                f"{self.bank}; take a larger bank or a smaller batch"
            )


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another run."""


@dataclass
class History:
    """What happened, in each round or solve."""

    rho: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)  # mean over the heads
    accuracy: list[float] = field(default_factory=list)  # for whoever knows the labels to fill in
    statuses: dict[str, int] = field(default_factory=dict)  # how many solves ended how
    start_seconds: float = 0.0  # for the clusters to start at, whoever made them, and the way there
    seconds: float = 0.0  # for all rounds
    labelling_seconds: float = 0.0  # therein


class Training:
    """One run of a method on a data set, which can stop after any round and go on later."""

    def __init__(
        self, begin: Start, method: Method, settings: Settings, device: str = "cpu"
    ) -> None:
        self.data, self.graph, self.seed = begin.data, begin.graph, begin.seed
        self.method, self.settings = method, settings
        self.inputs = torch.as_tensor(self.data.inputs, device=device)
        self._digest = hashlib.sha256(np.ascontiguousarray(self.data.inputs)).hexdigest()
        self.random = torch.Generator(device).manual_seed(self.seed)
        self.history = History()
        self.round = 0
        self.network = self._new_network()
        self._begin = begin
        self.optimizer = self._new_optimizer()
        self.labeler = self._new_labeler()

    def run(
        self, checkpoint: Path | None = None, on_round: Callable[[], Any] | None = None
    ) -> None:
        """Train to the end; where a checkpoint exists, from there on."""
        if checkpoint is not None and checkpoint.exists():
            self._go_on_from(checkpoint)
        elif self.round == 0:
            clusters, began = self._begin.clusters, time.perf_counter()
            self._begin_at(clusters)
            learning = time.perf_counter() - began
            self.history.start_seconds = self._begin.clusters_seconds + learning
        while self.round < self.settings.rounds:
            self._train_round()
            if on_round is not None:
                on_round()
            if checkpoint is not None:
                save_atomically(self.state_dict(), checkpoint)

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Return the logits (heads, N, K) of all samples."""
        return torch.cat([self.network(block) for block in self._blocks()], dim=1)

    def clusters(self) -> np.ndarray:
        """Return the clusters (N,) of the head that the neighbour graph agrees with most."""
        candidates = self.predict().argmax(dim=2).cpu().numpy()
        return max(candidates, key=lambda clusters: modularity(clusters, self.graph))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later `load_state_dict` needs to go on bit for bit."""
        return {
            "made_with": self._made_with(),
            "round": self.round,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "labeler": self.labeler.state_dict(),
            "random": self.random.get_state(),
            "history": asdict(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a run of the same data, method, settings and seed."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise CheckpointError("the checkpoint is not of a training: delete it (--restart)")
        theirs, own = state["made_with"], self._made_with()
        different = [name for name in theirs | own if theirs.get(name) != own.get(name)]
        if different:
            raise CheckpointError(
                f"the checkpoint is of a run with {_listed(theirs, different)}; this one has "
                f"{_listed(own, different)}: delete it (--restart) or go on with the same"
            )
        self.round = state["round"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.labeler.load_state_dict(state["labeler"])
        self.random.set_state(state["random"].cpu())
        self.history = History(**state["history"])

    def _go_on_from(self, checkpoint: Path) -> None:
        try:
            state = read_state(checkpoint, self.inputs.device)
        except ValueError as error:
            raise CheckpointError(f"{error}: delete it (--restart)") from error
        self.load_state_dict(state)

    def _made_with(self) -> dict[str, Any]:
        return {
            "data": self.data.name,
            "inputs": self._digest,
            "shape": list(self.data.inputs.shape),
            "classes": self.data.n_classes,
            "device": self.inputs.device.type,
            "seed": self.seed,
            **self.method.settings(),
            **asdict(self.settings),
        }

    def _new_network(self) -> ClusterNetwork:
        trunk: nn.Module = nn.Identity()
        with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator
            torch.manual_seed(self.seed)
            if self.data.is_images:
                trunk = small_convolutional_trunk(self.data.inputs.shape[1])
        trunk = trunk.to(self.inputs.device)
        n_features = trunk(self.inputs[:1]).shape[1]
        network = ClusterNetwork(trunk, self.settings.heads, self.data.n_classes, n_features)
        return network.to(self.inputs.device)

    def _begin_at(self, starts: list[np.ndarray]) -> None:
        """Put the heads' prototypes at the mean features of clusters; a new trunk learns these.

        Features of an untrained trunk hardly tell samples apart, so that the first pseudo-labels
        would follow the neighbour graph alone, into a few large clusters.
        """
        clusters = torch.as_tensor(np.stack(starts), dtype=torch.long, device=self.inputs.device)
        members = one_hot(clusters, self.data.n_classes).to(self.inputs.dtype)
        with torch.no_grad():
            features = torch.cat([self.network.trunk(block) for block in self._blocks()])
            sums = members.mT @ normalize(features, dim=1)
            self.network.start_at(sums / members.sum(dim=1)[:, :, None])
        if self.data.is_images:
            everything = torch.arange(len(self.inputs), device=self.inputs.device)
            self._learn(everything, members, STEPS_TO_START)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        network, settings = self.network, self.settings
        return torch.optim.Adam(
            [
                {"params": [network.prototypes], "lr": settings.learning_rate},
                {"params": network.trunk.parameters(), "lr": settings.trunk_learning_rate},
            ]
        )

    def _new_labeler(self) -> PseudoLabeler:
        settings, method = self.settings, self.method
        heads, classes = settings.heads, self.data.n_classes
        return PseudoLabeler(
            settings.rounds * -(-len(self.inputs) // self._labelled_at_once),
            capacity=settings.bank if self._has_bank else None,
            graph=self.graph if method.semantic_strength else None,
            ramp=method.ramp,
            semantic_weight=lambda _rho, n: method.semantic_strength * n,
            kl_weight=method.kl_weight,
            prior=AdaptivePrior(classes, heads=heads, momentum=0.9, uniform=0.3)
            if method.adaptive_prior
            else None,
            on_failure="return",  # counted, and reported with the results
        )

    def _blocks(self) -> tuple[Tensor, ...]:
        return self.inputs.split(LARGEST_BLOCK)

    @property
    def _has_bank(self) -> bool:
        return 0 < self.settings.bank < len(self.inputs)

    @property
    def _labelled_at_once(self) -> int:
        return self.settings.batch if self._has_bank else len(self.inputs)

    def _train_round(self) -> None:
        """Label all samples once, and learn the labels."""
        objectives, round_began = [], time.perf_counter()
        ended = Counter(self.history.statuses)
        order = torch.randperm(len(self.inputs), generator=self.random, device=self.inputs.device)
        for ids in order.split(self._labelled_at_once):
            with torch.no_grad():
                logits = self.network(self.inputs[ids])
            began = time.perf_counter()
            labels = self.labeler(logits, ids)
            self.history.labelling_seconds += time.perf_counter() - began
            self._learn(ids, labels.targets, 1 if self._has_bank else self.settings.updates)
            objectives += [solution.objective.total for solution in labels.solutions]
            ended.update(solution.status.name for solution in labels.solutions)
        self.history.rho.append(labels.rho)
        self.history.objective.append(float(np.mean(objectives)))
        self.history.statuses = dict(ended)
        self.history.seconds += time.perf_counter() - round_began
        self.round += 1

    def _learn(self, ids: Tensor, targets: Tensor, updates: int) -> None:
        """Take gradient steps towards the labels of some samples, on other views of them."""
        for _ in range(updates):
            order = torch.randperm(len(ids), generator=self.random, device=ids.device)
            rows = order[: self.settings.batch]
            views = disturbed(self.inputs[ids[rows]], self.random)
            loss = soft_cross_entropy(self.network(views), targets[:, rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def _listed(values: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {values.get(name)}" for name in names)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Save a checkpoint so that an interruption leaves the one before."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)

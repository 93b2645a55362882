"""Category discovery: labelled samples of known classes, the others of known classes or new ones.

Replaces the pseudo-labels of such a loop (balanced sweeps, k-means with seeds). One plan labels all
samples: labelled ones may go to their own class alone, the others to any class, the surest first.

To adapt it, keep `pseudo_labels` and pass it the logits of your network's head, which has an output
for each known and each new class. Lower `kl_weight` where the classes are of very unlike sizes.

    python examples/plug_in/category_discovery.py
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from torch.nn.functional import normalize

import ssot

UNLABELLED = -1
CLASSES, KNOWN = 10, 5
LOGIT_SCALE, ROUNDS, UPDATES, LEARNING_RATE = 10.0, 10, 12, 0.02


@torch.no_grad()
def pseudo_labels(
    logits: torch.Tensor,
    given: torch.Tensor,
    graph: torch.Tensor,
    progress: float,
    previous: ssot.Solution | None = None,
) -> ssot.Solution:
    """Solve for logits (N, K) and given labels (N,), -1 where there is none.

    The labelled mass goes up from the labelled samples and a tenth of the others to everything.
    """
    is_labelled = given >= 0
    is_own = given[:, None] == torch.arange(logits.shape[1], device=given.device)
    cost = -logits.log_softmax(dim=1)
    share = is_labelled.double().mean().item()
    return ssot.solve(
        cost.masked_fill(is_labelled[:, None] & ~is_own, torch.inf),
        graph,
        rho=ssot.sigmoid_ramp(progress, start=0.1 + 0.9 * share),
        kl_weight=3.0,
        semantic_weight=1.0 * len(logits),
        tol=1e-3,  # labels need no more
        init=previous,
    )


def train(features: torch.Tensor, given: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Train a cosine classifier on the pseudo-labels; return the class of each sample, (N,)."""
    graph, inputs = ssot.knn_graph(features), normalize(features, dim=1)
    known = [features[given == c].mean(dim=0) for c in range(KNOWN)]
    new, _ = kmeans_plusplus(
        features[given == UNLABELLED].numpy(), CLASSES - KNOWN, random_state=seed
    )
    weights = torch.vstack([*known, torch.from_numpy(new)]).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)
    solution = None

    def logits() -> torch.Tensor:
        return LOGIT_SCALE * inputs @ normalize(weights, dim=1).T

    for step in range(1, ROUNDS + 1):
        solution = pseudo_labels(logits(), given, graph, step / ROUNDS, solution)
        targets = len(inputs) * solution.plan
        for _ in range(UPDATES):
            loss = -(targets * logits().log_softmax(dim=1)).sum() / targets.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return solution.labels


def match(labels: np.ndarray, clusters: np.ndarray, known: int = 0) -> np.ndarray:
    """Rename clusters to classes, one to one, so that most samples agree; both 0 to K - 1.

    The first `known` clusters keep their names.
    """
    names = np.arange(1 + max(labels.max(), clusters.max()))
    counts = confusion_matrix(clusters, labels, labels=names)[known:, known:]
    names[known:] = known + linear_sum_assignment(counts, maximize=True)[1]
    return names[clusters]


def partly_labelled_digits(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (N, 64), digits (N,), and labels for half of the digits 0 to 4."""
    images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    is_drawn = torch.rand(len(digits), generator=torch.Generator().manual_seed(seed)) < 0.5
    return images / 16, digits, torch.where(is_drawn & (digits < KNOWN), digits, UNLABELLED)


def main() -> None:
    """Score the samples without a label, new classes up to their names."""
    images, digits, given = partly_labelled_digits(seed=0)
    is_open = given == UNLABELLED
    truth = digits[is_open].numpy()
    is_right = match(truth, train(images, given)[is_open].numpy(), KNOWN) == truth
    for name, chosen in (("known", truth < KNOWN), ("new", truth >= KNOWN)):
        print(f"accuracy on unlabelled samples of {name} classes: {is_right[chosen].mean():.1%}")


if __name__ == "__main__":
    main()

"""SP²OT-style training: the pseudo-label step of a script that holds logits and similarities.

Replaces the scaling loop on (N, K) logits and an (N, N) similarity, usually of a memory bank, that
returns N times the plan. Settings are the published ones: epsilon 0.1, `kl_weight` 1, the sigmoid
ramp of rho, and a semantic weight of 0.2 N (1 - rho), about 1000 (1 - rho) at N = 5,120.

To adapt it, pass `solve_step` what you have: the similarity may be dense as it is. A sparse one of
the nearest neighbours (``ssot.knn_graph``) has N k entries in place of N², 20 in place of 5,120 in
each row, and each step multiplies with it. Keep the solution for the next call, to start from its
plan if the samples are the same; if they are not, pass its prices alone (``solution.prices``).

    python examples/plug_in/sp2ot_script.py
"""

import torch

import ssot

STEPS = 5


@torch.no_grad()
def solve_step(
    logits: torch.Tensor,
    similarity: torch.Tensor,
    progress: float,
    previous: ssot.Solution | torch.Tensor | None = None,
) -> ssot.Solution:
    """Solve for logits (N, K), a dense or sparse similarity (N, N) and a progress from 0 to 1.

    `previous` is the solution to start from, or its prices where the samples are others.
    """
    rho = ssot.sigmoid_ramp(progress)
    return ssot.solve(
        logits=logits,
        graph=similarity,
        rho=rho,
        epsilon=0.1,
        kl_weight=1.0,
        semantic_weight=ssot.semantic_weight(rho, len(logits)),
        init=previous,
    )


def pseudo_labels(logits: torch.Tensor, similarity: torch.Tensor, progress: float) -> torch.Tensor:
    """Return N times the plan, (N, K): soft labels whose rows sum to at most 1."""
    return len(logits) * solve_step(logits, similarity, progress).plan


def toy_features(seed: int, samples: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw long-tailed features (N, 8), and logits (N, 4) of a classifier of them."""
    draw = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(4, 8, generator=draw, dtype=torch.float64)
    shares = torch.tensor([0.6, 0.25, 0.1, 0.05])
    classes = torch.multinomial(shares, samples, replacement=True, generator=draw)
    features = centres[classes] + torch.randn(samples, 8, generator=draw, dtype=torch.float64)
    return features, features @ centres.T / 8


def main() -> None:
    """Show that dense and sparse agree, and steps that each start from the last."""
    features, logits = toy_features(seed=0)
    similarity = ssot.knn_graph(features, k=20, bandwidth=2 * features.shape[1] ** 0.5)
    dense, sparse = (
        pseudo_labels(logits, form, progress=0.5) for form in (similarity.to_dense(), similarity)
    )
    print(
        f"labels from a dense and a sparse similarity differ by {(dense - sparse).abs().max():.0e}"
    )
    previous = None
    for step in range(1, STEPS + 1):
        previous = solve_step(logits, similarity, step / STEPS, previous)
        print(f"rho {previous.problem.rho:.2f}: {previous.status.name}, {previous.seconds:.3f} s")


if __name__ == "__main__":
    main()

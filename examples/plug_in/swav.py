"""SwAV-style training with swapped views and a queue.

Replaces the Sinkhorn sweeps: ``codes = sinkhorn(scores)`` becomes ``codes = assignments(scores)``.
SwAV's epsilon of 0.05 is the default here. Its three sweeps have no counterpart: the plan is solved
to `tol`, where three sweeps leave the columns uneven.

To adapt it, call `assignments` in your own loop. On imbalanced data pass ``kl_weight=1.0`` for
cluster sizes that may differ and ``rho=ssot.sigmoid_ramp(progress)`` for the surest samples only:
rows then sum to at most 1, the weight of the sample in the loss.

    python examples/plug_in/swav.py
"""

import math

import torch
from torch.nn.functional import normalize

import ssot

TEMPERATURE = 0.1
PROTOTYPES, QUEUE, BATCH, STEPS = 4, 128, 64, 60


@torch.no_grad()
def assignments(
    scores: torch.Tensor,
    rho: float = 1.0,
    epsilon: float = 0.05,
    kl_weight: float = math.inf,
    tol: float = 1e-6,
) -> torch.Tensor:
    """Return soft assignments (B, K), of mass rho * B, for cosine similarities of the same shape.

    By default rows sum to 1 and columns to B / K.
    """
    plan = ssot.sp2ot_plan(-scores, rho=rho, epsilon=epsilon, kl_weight=kl_weight, tol=tol)
    return len(scores) * plan


def swapped_loss(
    views: list[torch.Tensor], prototypes: torch.Tensor, queue: torch.Tensor
) -> torch.Tensor:
    """Predict each view's assignments from the other; the queue (Q, D) makes them more even."""
    scores = [view @ prototypes.T for view in views]
    older = (queue @ prototypes.T).detach()
    losses = []
    for own, other in (scores, scores[::-1]):
        codes = assignments(torch.cat([own.detach(), older]))[: len(own)]
        agreement = codes * (other / TEMPERATURE).log_softmax(dim=1)
        losses.append(-agreement.sum() / codes.sum())
    return torch.stack(losses).mean()


def train(images: torch.Tensor, seed: int = 0) -> tuple[list[float], torch.Tensor]:
    """Train an encoder and prototypes; return the losses and the final scores (N, K)."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(images.shape[1], 8, generator=draw, requires_grad=True)
    prototypes = torch.randn(PROTOTYPES, 8, generator=draw, requires_grad=True)
    optimizer = torch.optim.Adam([weight, prototypes], lr=0.02)
    queue, losses = torch.empty(0, 8), []
    for _ in range(STEPS):
        batch = images[torch.randint(len(images), (BATCH,), generator=draw)]
        noisy = [batch + 0.3 * torch.randn(batch.shape, generator=draw) for _ in range(2)]
        views = [normalize(view @ weight, dim=1) for view in noisy]
        loss = swapped_loss(views, normalize(prototypes, dim=1), queue)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([views[0].detach(), queue])[:QUEUE]
        losses.append(loss.item())
    with torch.no_grad():
        scores = normalize(images @ weight, dim=1) @ normalize(prototypes, dim=1).T
    return losses, scores


def blobs(seed: int) -> torch.Tensor:
    """Draw toy images (400, 16) around four centres, 100 of each in turn."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(4, 16, generator=draw)
    return centres.repeat_interleave(100, dim=0) + torch.randn(400, 16, generator=draw)


def main() -> None:
    """Train on toy images and show how many of each class go to each prototype."""
    losses, scores = train(blobs(seed=0))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; class by prototype:")
    for of_class in scores.argmax(dim=1).split(100):
        print(torch.bincount(of_class, minlength=PROTOTYPES).tolist())


if __name__ == "__main__":
    main()

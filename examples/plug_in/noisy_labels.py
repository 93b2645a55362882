"""Learning with noisy labels: keep the surest samples and relabel them.

Replaces the sample selection and relabelling of such a loop (small loss, co-teaching, thresholds).
The cost of a class is ``-log p(class | image) - log p(given label | class)``: what the classifier
says, and what the noise model says of the given label. The plan takes the cheapest fraction `rho`,
with class sizes near those of the given labels.

To adapt it, keep `relabel`; pass it your network's logits for all samples of an epoch, and your
estimate of the noise model. Rows of N * plan with much mass are to be trusted, and weigh more in
the loss by themselves.

    python examples/plug_in/noisy_labels.py
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import one_hot

import ssot

ROUNDS, UPDATES, LEARNING_RATE = 10, 10, 0.02


@torch.no_grad()
def relabel(
    logits: torch.Tensor, given: torch.Tensor, noise: torch.Tensor, rho: float
) -> ssot.Solution:
    """Label the surest `rho` of the samples: logits (N, K), given labels (N,).

    `noise` (K, K) holds the probability that a sample of class i was given label j. In the
    solution, `labels` are the new ones and samples with `confidence` above 1/2 are to be trusted.
    """
    cost = -logits.log_softmax(dim=1) - noise.log()[:, given].T
    shares = torch.bincount(given, minlength=len(noise)) / len(given)
    return ssot.solve(cost, rho=rho, kl_weight=1.0, prior=shares)


def symmetric_noise(rate: float, classes: int) -> torch.Tensor:
    """Return the noise model of labels that were exchanged for any other at this rate, (K, K)."""
    noise = torch.full((classes, classes), rate / (classes - 1), dtype=torch.float64)
    return noise.fill_diagonal_(1 - rate)


def train(
    images: torch.Tensor, given: torch.Tensor, noise: torch.Tensor, keep: float = 0.8
) -> ssot.Solution:
    """Train a linear classifier and relabel in turn, from 0.2 of the samples up to `keep`."""
    classes = len(noise)
    model = torch.nn.Linear(images.shape[1], classes, dtype=images.dtype)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    targets = one_hot(given, classes).to(images.dtype)  # the given labels, for a first round
    for step in range(1, ROUNDS + 1):
        for _ in range(UPDATES):
            loss = -(targets * model(images).log_softmax(dim=1)).sum() / targets.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rho = min(ssot.linear_ramp(step / ROUNDS, start=0.2), keep)
        solution = relabel(model(images), given, noise, rho)
        targets = len(images) * solution.plan
    return solution


def noisy_digits(rate: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images (N, 64), true labels (N,) and labels of which `rate` are wrong."""
    images, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    draw = torch.Generator().manual_seed(seed)
    is_wrong = torch.rand(len(digits), generator=draw) < rate
    other = (digits + torch.randint(1, 10, digits.shape, generator=draw)) % 10
    return images / 16, digits, torch.where(is_wrong, other, digits)


def main() -> None:
    """Correct digits of which two in five have a wrong label."""
    images, digits, given = noisy_digits(rate=0.4, seed=0)
    solution = train(images, given, symmetric_noise(0.4, classes=10))
    is_right, is_trusted = solution.labels == digits, solution.confidence > 0.5
    print(f"correct labels: given {(given == digits).double().mean():.1%}")
    print(f"after relabelling: {is_right.double().mean():.1%} of all samples,")
    print(f"{is_right[is_trusted].double().mean():.1%} of the {is_trusted.sum()} trusted ones")


if __name__ == "__main__":
    main()

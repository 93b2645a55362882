"""The losses of partial soft labels."""

import numpy as np
import pytest
from training_batches import CLASSES, random_logits, torch

from ssot.training import soft_cross_entropy, swapped_cross_entropy


def random_targets(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64)
    return share * random_logits(seed, *shape).softmax(dim=-1)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_the_loss_is_torchs_cross_entropy(leading):
    logits = random_logits(0, *leading, 7, CLASSES).requires_grad_()
    other = logits.detach().clone().requires_grad_()
    targets = random_targets(1, *leading, 7, CLASSES).requires_grad_()
    loss = soft_cross_entropy(logits, targets)
    expected = torch.nn.functional.cross_entropy(
        other.flatten(0, -2), targets.detach().flatten(0, -2)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    assert torch.allclose(logits.grad, other.grad, rtol=1e-12)
    assert targets.grad is None


def test_without_labels_loss_and_gradient_are_zero():
    logits = random_logits(0, 2, 5, CLASSES)
    logits[..., 1] = -np.inf
    logits.requires_grad_()
    for loss in (soft_cross_entropy, swapped_cross_entropy):
        value = loss(logits, torch.zeros_like(logits))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0
        assert (gradient == 0).all()


def test_masked_classes_do_not_count():
    targets = random_targets(0, 2, 5, CLASSES)
    targets[..., 1] = 0
    logits = random_logits(1, 2, 5, CLASSES)
    rest = [0, 2, 3]
    expected = {
        loss: loss(logits[..., rest], targets[..., rest])
        for loss in (soft_cross_entropy, swapped_cross_entropy)
    }
    logits[..., 1] = -np.inf
    logits.requires_grad_()
    for loss, value in expected.items():
        found = loss(logits, targets)
        assert found.item() == pytest.approx(value.item(), rel=1e-12)
        (gradient,) = torch.autograd.grad(found, logits)
        assert gradient.isfinite().all()
        assert (gradient[..., 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits, targets = random_logits(0, 2, 9, CLASSES).to(dtype), random_targets(1, 2, 9, CLASSES)
    for loss in (soft_cross_entropy, swapped_cross_entropy):
        found = loss(logits, targets.to(dtype))
        assert found.dtype == torch.float32
        exact = loss(logits.double(), targets.to(dtype).double())
        assert found.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("views", [2, 3])
def test_each_view_learns_from_the_others(views):
    logits = random_logits(0, 2, views, 6, CLASSES)
    targets = random_targets(1, 2, views, 6, CLASSES)
    expected = np.mean(
        [
            soft_cross_entropy(
                logits[:, v], torch.stack([targets[:, w] for w in range(views) if w != v]).mean(0)
            ).item()
            for v in range(views)
        ]
    )
    assert swapped_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-12)


def test_what_losses_refuse():
    logits = torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="at least 2 views"):
        swapped_cross_entropy(logits, logits)
    with pytest.raises(ValueError, match="at least 2 views"):
        swapped_cross_entropy(logits[0], logits[0])
    with pytest.raises(ValueError, match="shape of logits"):
        soft_cross_entropy(logits, logits[0])
    with pytest.raises(ValueError, match="at least one sample"):
        soft_cross_entropy(logits[:, :0], logits[:, :0])
    with pytest.raises(TypeError, match="int64"):
        soft_cross_entropy(logits, logits.long())
    with pytest.raises(TypeError, match="ndarray"):
        soft_cross_entropy(logits.numpy(), logits)

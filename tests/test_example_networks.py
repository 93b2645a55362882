"""The deep-clustering example: disturbed views, and the network that learns them."""

import math

import pytest

pytest.importorskip("torch")

import torch

from examples.deep_clustering import views
from examples.deep_clustering.networks import (
    LOGIT_SCALE,
    WIDTH,
    ClusterNetwork,
    small_convolutional_trunk,
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


# Views


@pytest.mark.parametrize("shape", [(50, 16), (6, 3, 9, 12)])
def test_views_differ_keep_their_kind_and_depend_on_the_generator_alone(shape):
    inputs = torch.rand(shape, generator=random())
    before = inputs.clone()
    torch.manual_seed(1)
    view = views.disturbed(inputs, random(5))
    torch.manual_seed(2)
    again, other = views.disturbed(inputs, random(5)), views.disturbed(inputs, random(6))
    assert (view.shape, view.dtype) == (inputs.shape, inputs.dtype)
    assert torch.equal(view, again)
    assert not torch.equal(view, other)
    assert not torch.equal(view, inputs)
    assert torch.equal(inputs, before)


def test_features_are_dropped_in_the_share_that_is_said_and_noise_follows_their_scale():
    for scale in (0.01, 100.0):
        view = views.disturbed(torch.full((400, 100), scale), random())
        is_kept = view != 0
        assert (~is_kept).double().mean().item() == pytest.approx(views.DROPOUT, abs=0.01)
        noise = view[is_kept] / scale - 1
        assert noise.mean().item() == pytest.approx(0, abs=0.01)
        assert noise.std().item() == pytest.approx(views.NOISE, rel=0.05)


def test_moved_images_keep_the_mass_of_a_blob_and_move_it_no_further_than_said():
    side = 33
    line = torch.linspace(-1, 1, side)
    blob = torch.exp(-(line[:, None] ** 2 + line**2) / 0.08)
    images = blob.expand(200, 2, side, side)
    moved = views.disturbed(images, random())
    torch.testing.assert_close(moved.sum(dim=(2, 3)), images.sum(dim=(2, 3)), rtol=0.02, atol=0)
    centres = torch.stack([moved.sum(dim=2) @ line, moved.sum(dim=3) @ line])
    centres /= moved.sum(dim=(2, 3))
    assert (centres.norm(dim=0) <= 1.01 * math.sqrt(2) * views.LARGEST_SHIFT).all()
    assert centres.abs().max() > 0.9 * views.LARGEST_SHIFT
    assert centres.mean().abs() < 0.02
    assert torch.equal(moved[:, 0], moved[:, 1])  # the channels of an image move together


# Network


@pytest.fixture
def network():
    network = ClusterNetwork(torch.nn.Identity(), heads=3, n_classes=4, n_features=6)
    network.start_at(torch.randn((3, 4, 6), generator=random()))
    return network


@torch.no_grad()
def test_logits_are_scaled_cosines(network):
    inputs = torch.randn((20, 6), generator=random(1))
    logits = network(inputs)
    assert logits.shape == (3, 20, 4)
    for head in range(3):
        cosines = torch.cosine_similarity(
            inputs[:, None], network.prototypes[head][None].detach(), dim=2
        )
        torch.testing.assert_close(logits[head], LOGIT_SCALE * cosines)
    assert logits.abs().max() <= LOGIT_SCALE * (1 + 1e-6)
    own = network(network.prototypes[1].detach())[1]
    torch.testing.assert_close(own.diagonal(), torch.full((4,), LOGIT_SCALE))


@torch.no_grad()
def test_lengths_of_inputs_and_prototypes_do_not_count(network):
    inputs = torch.randn((20, 6), generator=random(1))
    lengths = torch.logspace(-3, 3, 20)[:, None]
    logits = network(inputs)
    torch.testing.assert_close(network(lengths * inputs), logits)
    network.prototypes *= torch.logspace(-2, 2, 12).reshape(3, 4, 1)
    torch.testing.assert_close(network(inputs), logits)


def test_prototypes_start_at_directions_with_entries_of_size_one(network):
    directions = torch.randn((3, 4, 6), generator=random(2))
    network.start_at(directions)
    root_mean_squares = network.prototypes.detach().square().mean(dim=2).sqrt()
    torch.testing.assert_close(root_mean_squares, torch.ones(3, 4))
    cosines = torch.cosine_similarity(network.prototypes.detach(), directions, dim=2)
    torch.testing.assert_close(cosines, torch.ones(3, 4))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 32, 20)])
def test_the_trunk_takes_images_of_any_size(shape):
    trunk = small_convolutional_trunk(shape[1])
    assert trunk(torch.rand(shape)).shape == (2, WIDTH)

"""The memory of a training loop: the latest logits of each of the last samples."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS
from training_batches import CLASSES, batches, random_logits, through_a_file, torch

from ssot.training import MemoryBank


@PROFILE
@given(
    seed=SEEDS,
    capacity=st.integers(1, 7),
    sizes=st.lists(st.integers(1, 7), max_size=8),
    leading=st.sampled_from([(), (2,), (2, 3)]),
    samples=st.integers(1, 12),
)
def test_a_bank_holds_the_latest_of_each_sample(seed, capacity, sizes, leading, samples):
    bank, added = MemoryBank(capacity), []
    rng = np.random.default_rng(seed)
    for size in sizes:
        ids = torch.from_numpy(rng.integers(samples, size=min(size, capacity)))
        logits = random_logits(int(rng.integers(1000)), *leading, len(ids), 3)
        bank.add(logits, ids)
        added += zip(ids.tolist(), logits.unbind(-2), strict=True)
    latest = {}
    for sample, row in added[-capacity:]:
        latest.pop(sample, None)
        latest[sample] = row
    assert len(bank) == len(latest)
    assert bank.ids.tolist() == list(latest)
    if latest:
        assert torch.equal(bank.logits, torch.stack(list(latest.values()), dim=-2))
        asked = torch.from_numpy(rng.choice(list(latest), size=5))
        assert torch.equal(bank.ids[bank.positions(asked)], asked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_bank_keeps_dtype_and_device_and_its_own_copy(dtype, place):
    logits = random_logits(0, 3, CLASSES).to(place.device, dtype).requires_grad_()
    bank = MemoryBank(5)
    bank.add(logits, torch.tensor([3, 1, 2]))
    assert bank.logits.dtype == dtype
    assert bank.logits.device == bank.ids.device == logits.device
    assert not bank.logits.requires_grad
    before = bank.logits
    with torch.no_grad():
        logits.zero_()
    assert torch.equal(bank.logits, before)


def test_ids_may_be_every_other_entry():
    bank, ids = MemoryBank(5), torch.arange(8)[::2]
    bank.add(torch.zeros(4, CLASSES), ids)
    assert bank.positions(ids).tolist() == [0, 1, 2, 3]


def test_a_bank_writes_in_place():
    bank, places = MemoryBank(20), set()
    for batch in batches(6):
        bank.add(*batch)
        places.add(bank._logits.data_ptr())
    assert len(places) == 1


def test_a_bank_filled_in_inference_mode_can_be_used_outside():
    bank = MemoryBank(20)
    (first, second) = batches(2)
    with torch.inference_mode():
        bank.add(*first)
        bank.load_state_dict(bank.state_dict())
    bank.add(*second)
    assert torch.equal(bank.logits[-12:], second[0])


def test_a_bank_goes_through_a_file():
    bank, other = MemoryBank(20), MemoryBank(20)
    *given, last = batches(4)
    for batch in given:
        bank.add(*batch)
    other.load_state_dict(through_a_file(bank.state_dict()))
    snapshot = copy.deepcopy(bank.state_dict())
    for each in (bank, other):
        each.add(*last)
    assert torch.equal(bank.ids, other.ids)
    assert torch.equal(bank.logits, other.logits)
    assert not torch.equal(snapshot["ids"], bank.state_dict()["ids"])
    with pytest.raises(ValueError, match="capacity 30"):
        MemoryBank(30).load_state_dict(snapshot)


def test_a_cleared_bank_takes_another_shape():
    bank = MemoryBank(5)
    bank.load_state_dict(through_a_file(bank.state_dict()))
    bank.add(torch.zeros(2, 3), torch.tensor([0, 1]))
    bank.clear()
    assert len(bank) == 0
    assert bank.ids.tolist() == []
    bank.add(torch.zeros(4, 1, 2), torch.tensor([0]))
    assert bank.logits.shape == (4, 1, 2)
    assert bank.to("cpu") is bank


@pytest.mark.parametrize(
    ("logits", "ids", "error", "message"),
    [
        (torch.zeros(4, 2), [0, 1, 2, 3], ValueError, "at most capacity = 3"),
        (torch.zeros(2, 5), [0, 1], ValueError, "number of classes"),
        (torch.zeros(1, 2, 2), [0, 1], ValueError, "leading shape"),
        (torch.zeros(2, 2).double(), [0, 1], ValueError, "dtype"),
        (torch.zeros(2, 2), [0, -1], ValueError, "0 or above, got -1"),
        (torch.zeros(2, 2), [0, 1, 2], ValueError, r"shape \(2,\)"),
        (torch.zeros(2, 2), [0.0, 1.0], TypeError, "integers"),
        (torch.zeros(2, 2).long(), [0, 1], TypeError, "floats"),
        (np.zeros((2, 2)), [0, 1], TypeError, "ndarray"),
        (torch.zeros(2), [0, 1], ValueError, r"\(..., B, K\)"),
    ],
)
def test_what_a_bank_refuses(logits, ids, error, message):
    bank = MemoryBank(3)
    bank.add(torch.ones(1, 2), torch.tensor([9]))
    with pytest.raises(error, match=message):
        bank.add(logits, torch.tensor(ids))
    assert bank.ids.tolist() == [9]


def test_a_bank_does_not_know_samples_that_it_does_not_hold():
    bank = MemoryBank(3)
    with pytest.raises(ValueError, match="shape before the first batch"):
        _ = bank.logits
    for _ in range(2):
        with pytest.raises(ValueError, match=r"got \[4\]"):
            bank.positions(torch.tensor([4]))
        bank.add(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(ValueError, match="1 or above"):
        MemoryBank(0)
    with pytest.raises(TypeError, match="integer"):
        MemoryBank(2.5)

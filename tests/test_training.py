"""What a training loop is given: a memory of samples, their pseudo-labels, and losses."""

import copy
import dataclasses
import inspect
import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROFILE, SEEDS, random_graph
from scipy import sparse
from test_imports import run_apart

import ssot

torch = pytest.importorskip("torch", reason="training is Torch's")
from torch.nn.functional import cross_entropy  # noqa: E402

from ssot import training  # noqa: E402
from ssot.training import (  # noqa: E402
    AdaptivePrior,
    MemoryBank,
    PseudoLabeler,
    soft_cross_entropy,
    swapped_cross_entropy,
)

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


def test_without_torch_the_error_names_the_extra():
    hide = "import sys; sys.modules['torch'] = None"
    ask = "try: import ssot.training\nexcept ImportError as error: print(error)"
    assert "torch extra" in run_apart(f"{hide}\nimport ssot\n{ask}")


def test_public_objects_and_their_methods_are_documented():
    for name in training.__all__:
        thing = getattr(training, name)
        assert thing.__doc__, name
        parts = vars(thing).items() if inspect.isclass(thing) else ()
        public = {part: value for part, value in parts if not part.startswith("_")}
        assert [part for part, value in public.items() if not value.__doc__] == [], name
    described = inspect.getdoc(training.PseudoLabels)
    fields = [field.name for field in dataclasses.fields(training.PseudoLabels)]
    assert [name for name in fields if f"{name} :" not in described] == []


# Memory bank


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


# Labeler


def test_labels_are_those_of_a_solve_of_the_bank(place):
    capacity, tol = 30, 1e-10
    labeler = PseudoLabeler(10, capacity=capacity, graph=GRAPH, tol=tol, kl_weight=2.0)
    bank = MemoryBank(capacity)
    for step, (logits, ids) in enumerate(batches(5, leading=(2,)), start=1):
        labels = labeler(logits.to(place.device), ids.to(place.device))
        bank.add(logits, ids)
        held = bank.ids.numpy()
        rho = ssot.sigmoid_ramp(step / 10)
        direct = ssot.solve(
            logits=bank.logits.numpy(),
            graph=GRAPH.toarray()[np.ix_(held, held)],
            rho=rho,
            semantic_weight=ssot.semantic_weight(rho, len(held)),
            kl_weight=2.0,
            tol=tol,
            init=[solution.prices.cpu().numpy() for solution in labels.solutions],
        )
        expected = len(held) * direct.plan[:, bank.positions(ids)]
        assert labels.targets.device.type == place.device.type
        assert np.allclose(labels.targets.cpu(), expected, atol=1e-3)
        assert (labels.step, labels.rho) == (step, rho)
        assert labels.semantic_weight == ssot.semantic_weight(rho, len(held))
        assert labels.ids.tolist() == held.tolist()


@settings(PROFILE, max_examples=10)
@given(seed=SEEDS, capacity=st.sampled_from([None, 20, 35]), leading=st.sampled_from([(), (2, 2)]))
def test_rows_sum_to_labelled_shares_and_all_of_them_to_rho(seed, capacity, leading):
    labeler = PseudoLabeler(3, capacity=capacity, graph=GRAPH)
    for logits, ids in batches(4, leading=leading, seed=seed % 1000):
        labels = labeler(logits, ids)
        assert labels.targets.shape == logits.shape
        shares = labels.targets.sum(dim=-1)
        assert shares.min() >= 0
        assert shares.max() <= 1 + 1e-12
        if capacity is None:
            assert shares.mean().item() == pytest.approx(labels.rho, abs=1e-3)
        for solution in labels.solutions:
            assert solution.plan.sum().item() == pytest.approx(labels.rho, abs=1e-3)
    assert labels.rho == 1.0


def test_progress_ends_at_one_with_the_last_step_and_stays():
    seen = []

    def ramp(progress):
        seen.append(progress)
        return 0.5

    labeler = PseudoLabeler(4, ramp=ramp)
    for batch in batches(6):
        assert labeler(*batch).rho == 0.5
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_numbers_in_place_of_schedules():
    labeler = PseudoLabeler(4, graph=GRAPH, ramp=0.3, semantic_weight=1.5)
    labels = labeler(*next(batches(1)))
    assert (labels.rho, labels.semantic_weight) == (0.3, 1.5)
    assert labels.solutions[0].problem.semantic_weight == 1.5


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_a_warm_start_saves_passes_and_changes_nothing_else(leading):
    options = {"ramp": 0.4, "epsilon": 0.02, "tol": 1e-9}
    warm, passes = PseudoLabeler(10, **options), {"warm": 0, "cold": 0}
    logits, ids = random_logits(7, *leading, SAMPLES, CLASSES), torch.arange(SAMPLES)
    for step in range(5):
        logits = logits + 0.02 * random_logits(step, *logits.shape)
        labels = {"warm": warm(logits, ids), "cold": PseudoLabeler(10, **options)(logits, ids)}
        assert torch.allclose(labels["warm"].targets, labels["cold"].targets, atol=1e-6)
        if step:
            for name, found in labels.items():
                passes[name] += sum(c.row_passes for c in found.solutions.certificate)
    assert passes["warm"] < 0.7 * passes["cold"]


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
def test_heads_and_views_are_labelled_as_if_alone(leading):
    options = {"capacity": 30, "graph": GRAPH, "tol": 1e-9, "semantic_weight": 0.5}
    together = PseudoLabeler(5, **options)
    apart = [PseudoLabeler(5, **options) for _ in range(np.prod(leading))]
    for logits, ids in batches(3, leading=leading):
        targets = together(logits, ids).targets.flatten(0, -3)
        for own, problem, labeler in zip(targets, logits.flatten(0, -3), apart, strict=True):
            assert torch.allclose(own, labeler(problem, ids).targets, atol=1e-4)


@pytest.mark.parametrize("capacity", [None, 30])
def test_of_duplicates_the_last_counts_and_all_get_its_labels(capacity):
    logits, ids = next(batches(1))
    twice = torch.cat([ids, ids[:3]])
    changed = torch.cat([logits, -logits[:3]])
    labels = PseudoLabeler(4, capacity=capacity)(changed, twice)
    assert torch.equal(labels.targets[:3], labels.targets[-3:])
    assert labels.ids.tolist() == ids[3:].tolist() + ids[:3].tolist()
    last = PseudoLabeler(4)(changed[3:], twice[3:])
    assert torch.allclose(labels.targets[3:], last.targets)


def test_gradients_are_not_tracked_and_inputs_are_left_alone():
    logits, ids = next(batches(1, leading=(2,)))
    logits.requires_grad_()
    before = logits.detach().clone(), ids.clone()
    labeler = PseudoLabeler(4, capacity=20, graph=GRAPH)
    for _ in range(2):
        labels = labeler(logits, ids)
        assert not labels.targets.requires_grad
        assert not labels.solutions[0].plan.requires_grad
    assert torch.equal(logits, before[0])
    assert torch.equal(ids, before[1])
    assert torch.is_grad_enabled()
    soft_cross_entropy(logits, labels.targets).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["half", "brain", "single"]
)
def test_targets_have_the_dtype_of_the_logits(dtype):
    logits, ids = next(batches(1))
    labeler = PseudoLabeler(4, capacity=20)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        labels = labeler(logits.to(dtype), ids)
    assert labels.targets.dtype == dtype
    exact = PseudoLabeler(4, capacity=20)(logits, ids).targets
    assert torch.allclose(labels.targets.double(), exact, atol=0.05)


@pytest.mark.parametrize("leading", [(), (2, 2)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(leading, adaptive):
    def make():
        heads = leading[0] if leading else 1
        prior = AdaptivePrior(CLASSES, heads=heads, momentum=0.5) if adaptive else None
        return PseudoLabeler(8, capacity=30, graph=GRAPH, prior=prior)

    *first, second, third = batches(6, leading=leading)
    whole = make()
    for batch in first:
        whole(*batch)
    state = whole.state_dict()
    saved = through_a_file(state)
    expected = [whole(*batch).targets for batch in (second, third)]
    for given_state in (saved, state):  # a copy, which the steps since then left alone
        resumed = make()
        resumed.load_state_dict(given_state)
        assert all(map(torch.equal, [resumed(*b).targets for b in (second, third)], expected))


def test_a_state_of_another_labeler_is_refused():
    plain, banked = PseudoLabeler(3), PseudoLabeler(3, capacity=20)
    adaptive = PseudoLabeler(3, prior=AdaptivePrior(CLASSES))
    with pytest.raises(ValueError, match="must have a bank"):
        banked.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="must not have a prior"):
        plain.load_state_dict(adaptive.state_dict())


def test_a_failure_is_told_and_does_not_spoil_the_next_step():
    first, second = batches(2)
    # Hard sizes that the mask of class 0 makes impossible: only sample 0 may join it.
    impossible = first[0].clone()
    impossible[1:, 0] = -np.inf
    options = {"kl_weight": np.inf, "ramp": 1.0, "tol": 1e-6}
    labeler = PseudoLabeler(3, **options)
    with pytest.warns(ssot.ConvergenceWarning):
        failed = labeler(impossible, first[1])
    assert not failed.solutions[0].status.is_success
    after = labeler(*second)
    assert after.solutions[0].status is ssot.Status.CONVERGED
    cold = PseudoLabeler(3, **options)(*second)
    assert torch.equal(after.targets, cold.targets)

    silent = PseudoLabeler(3, on_failure="return", **options)
    silent(impossible, first[1])
    strict = PseudoLabeler(3, on_failure="raise", **options)
    with pytest.raises(ssot.ConvergenceError):
        strict(impossible, first[1])
    assert strict.step == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda logits: logits[0, 1].fill_(np.nan), "finite"),
        (lambda logits: logits[0, 1].fill_(np.inf), "finite"),
        (lambda logits: logits[0].fill_(-np.inf), "finite"),
    ],
)
def test_a_batch_that_cannot_be_solved_is_not_remembered(spoil, message):
    labeler = PseudoLabeler(3, capacity=30)
    first, second = batches(2)
    labeler(*first)
    spoil(second[0])
    with pytest.raises(ValueError, match=message):
        labeler(*second)
    assert torch.equal(labeler.bank.ids, first[1])
    assert labeler.step == 1


def test_samples_that_the_graph_does_not_have_are_not_remembered():
    labeler = PseudoLabeler(3, capacity=30, graph=GRAPH)
    logits, ids = next(batches(1))
    ids[0] = SAMPLES
    with pytest.raises(ValueError, match=f"from 0 to {SAMPLES - 1}"):
        labeler(logits, ids)
    assert len(labeler.bank) == 0


def test_prices_start_anew_for_other_heads_or_classes():
    labeler = PseudoLabeler(9)
    for shape in [(12, 4), (2, 12, 4), (2, 12, 5), (4, 12, 5), (2, 2, 12, 5)]:
        labels = labeler(random_logits(0, *shape), torch.arange(12))
        assert labels.targets.shape == shape


def tensors(graph, layout):
    dense = torch.from_numpy(graph.toarray())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse CSR's being new
        return dense.to_sparse(layout=layout)


@pytest.mark.parametrize("form", ["csr", "coo", "array", "neighbours", "tensor neighbours"])
def test_the_graph_may_have_any_sparse_form(form, place):
    k = 5
    indices = np.stack([np.random.default_rng(i).permutation(SAMPLES)[:k] for i in range(SAMPLES)])
    weights = np.random.default_rng(0).random(indices.shape)
    starts = np.arange(SAMPLES + 1) * k
    array = sparse.csr_array((weights.ravel(), indices.ravel(), starts), shape=GRAPH.shape)
    pair = torch.from_numpy(indices).to(place.device), torch.from_numpy(weights).to(place.device)
    graph = {
        "csr": lambda: tensors(array, torch.sparse_csr).to(place.device),
        "coo": lambda: tensors(array, torch.sparse_coo).to(place.device),
        "array": lambda: array,
        "neighbours": lambda: (indices, weights),
        "tensor neighbours": lambda: pair,
    }[form]()
    logits, ids = next(batches(1))
    labels = PseudoLabeler(9, graph=graph, tol=1e-9)(logits.to(place.device), ids.to(place.device))
    chosen = ids.numpy()
    direct = ssot.sp2ot_plan(
        logits=logits,
        graph=torch.from_numpy(array.toarray()[np.ix_(chosen, chosen)]),
        rho=labels.rho,
        semantic_weight=labels.semantic_weight,
        tol=1e-9,
    )
    assert torch.allclose(labels.targets.cpu(), len(ids) * direct, atol=1e-5)


def test_nothing_of_the_size_of_all_pairs_is_made():
    samples = 1_000_000
    own = np.arange(samples)
    graph = sparse.csr_array(
        (np.ones(samples), (own + 1) % samples, np.arange(samples + 1)), shape=(samples, samples)
    )
    labeler = PseudoLabeler(9, capacity=20, graph=graph)
    labels = labeler(random_logits(0, 12, CLASSES), torch.arange(12) * 1000)
    assert labels.targets.shape == (12, CLASSES)


def test_what_a_labeler_refuses():
    with pytest.raises(ValueError, match="total_steps must be 1 or above"):
        PseudoLabeler(0)
    with pytest.raises(ValueError, match="capacity must be 1 or above"):
        PseudoLabeler(1, capacity=0)
    with pytest.raises(TypeError, match="dense"):
        PseudoLabeler(1, graph=GRAPH.toarray())
    with pytest.raises(ValueError, match="heads=2"):
        PseudoLabeler(1, prior=AdaptivePrior(CLASSES))(*next(batches(1, leading=(2,))))
    with pytest.raises(ValueError, match="at most capacity"):
        PseudoLabeler(1, capacity=5)(*next(batches(1)))


# Class sizes


def test_a_fixed_prior_is_that_of_the_solve():
    logits, ids = next(batches(1, leading=(2,)))
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    labels = PseudoLabeler(4, ramp=0.5, prior=shares, kl_weight=np.inf, tol=1e-9)(logits, ids)
    sizes = labels.targets.mean(dim=-2)
    assert np.allclose(sizes, 0.5 * shares, atol=1e-6)


@PROFILE
@given(
    seed=SEEDS,
    heads=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    uniform=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_class_shares_follow_their_formula(seed, heads, momentum, uniform):
    prior = AdaptivePrior(CLASSES, heads=heads, momentum=momentum, uniform=uniform)
    shares = np.full((heads, CLASSES), 1 / CLASSES)
    assert np.allclose(prior.value, shares)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        masses = rng.random((heads, 2, CLASSES))
        prior.update(torch.from_numpy(masses))
        seen = masses.mean(axis=1)
        shares = momentum * shares + (1 - momentum) * seen / seen.sum(axis=1, keepdims=True)
    assert np.allclose(prior.value, (1 - uniform) * shares + uniform / CLASSES)
    assert np.allclose(prior.value.sum(dim=1), 1)


def test_an_adaptive_prior_learns_the_sizes_of_each_head():
    sizes = np.array([0.55, 0.25, 0.15, 0.05])
    classes = np.repeat(np.arange(CLASSES), (60 * sizes).round().astype(int))
    logits = 6.0 * torch.eye(CLASSES)[torch.from_numpy(classes)].double()
    logits = torch.stack([logits, logits.flip(-1)]).unsqueeze(1).repeat(1, 3, 1, 1)
    prior = AdaptivePrior(CLASSES, heads=2, momentum=0.5, uniform=0.0)
    labeler = PseudoLabeler(20, ramp=0.8, prior=prior)
    for _ in range(20):
        labels = labeler(logits, torch.arange(60))
    assert np.allclose(prior.value, [sizes, sizes[::-1]], atol=0.02)
    given_priors = [solution.problem.prior for solution in labels.solutions]
    assert np.array_equal(given_priors[0], given_priors[2])
    assert np.allclose(given_priors[0], given_priors[3][::-1])


@pytest.mark.parametrize(
    ("masses", "message"),
    [
        (torch.ones(CLASSES), "heads, K"),
        (torch.ones(2, CLASSES), "heads, K"),
        (torch.zeros(1, CLASSES), "not all 0"),
        (-torch.ones(1, CLASSES), "0 or above"),
        (torch.full((1, CLASSES), np.nan), "finite"),
        (torch.full((1, CLASSES), np.inf), "finite"),
    ],
)
def test_masses_that_are_refused(masses, message):
    prior = AdaptivePrior(CLASSES)
    with pytest.raises(ValueError, match=message):
        prior.update(masses)
    assert np.allclose(prior.value, 1 / CLASSES)


def test_settings_of_a_prior_that_are_refused():
    with pytest.raises(ValueError, match="momentum"):
        AdaptivePrior(3, momentum=1.0)
    with pytest.raises(TypeError, match="momentum must be a number"):
        AdaptivePrior(3, momentum="high")
    with pytest.raises(ValueError, match="uniform"):
        AdaptivePrior(3, uniform=-0.1)
    with pytest.raises(ValueError, match=r"\(1, 3\), got one of \(2, 3\)"):
        AdaptivePrior(3).load_state_dict(AdaptivePrior(3, heads=2).state_dict())


# Losses


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
    expected = cross_entropy(other.flatten(0, -2), targets.detach().flatten(0, -2))
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

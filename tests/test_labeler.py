"""The labeler of a training loop: what `solve` gives for its bank, step by step."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PROFILE, SEEDS
from scipy import sparse
from training_batches import (
    CLASSES,
    GRAPH,
    SAMPLES,
    batches,
    random_logits,
    through_a_file,
    torch,
)

import ssot
from ssot.training import AdaptivePrior, MemoryBank, PseudoLabeler, soft_cross_entropy


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
    published = PseudoLabeler(4, graph=GRAPH, semantic_weight=None)(*next(batches(1)))
    assert published.semantic_weight == pytest.approx(0.2 * 12)


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


def test_of_a_refused_state_nothing_is_taken_over():
    def make(seed, capacity=20, heads=2):
        labeler = PseudoLabeler(9, capacity=capacity, prior=AdaptivePrior(CLASSES, heads=heads))
        for batch in batches(1 + seed, leading=(heads,), seed=seed):
            labeler(*batch)
        return labeler

    labeler, torn = make(0), make(1).state_dict()
    del torn["prices"]
    before = labeler.state_dict()
    for state in (make(1, capacity=30).state_dict(), make(1, heads=1).state_dict(), torn):
        with pytest.raises((ValueError, KeyError), match=r"capacity|heads|prices"):
            labeler.load_state_dict(state)
        after = labeler.state_dict()
        assert (after["step"], after["leading"]) == (before["step"], before["leading"])
        assert torch.equal(after["bank"]["ids"], before["bank"]["ids"])
        assert torch.equal(after["prior"]["shares"], before["prior"]["shares"])
        assert all(map(torch.equal, after["prices"], before["prices"]))


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


@pytest.mark.parametrize("wrong", [None, "half", 0.0, 1.5, np.nan])
def test_a_batch_with_a_wrong_rho_is_not_remembered(wrong):
    labeler = PseudoLabeler(3, capacity=30, ramp=lambda progress: wrong)
    with pytest.raises((TypeError, ValueError), match="ramp must be"):
        labeler(*next(batches(1)))
    assert (len(labeler.bank), labeler.step) == (0, 0)


def test_a_wrong_semantic_weight_is_named():
    labeler = PseudoLabeler(3, graph=GRAPH, semantic_weight=lambda rho, samples: "strong")
    with pytest.raises(TypeError, match="semantic_weight must be a number"):
        labeler(*next(batches(1)))


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


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_graph_in_half_precision_is_that_of_its_weights_in_single(layout, dtype, place):
    rounded = tensors(GRAPH, layout).to(dtype)
    logits, ids = (part.to(place.device) for part in next(batches(1)))
    half, single = (
        PseudoLabeler(9, graph=graph.to(place.device))(logits, ids)
        for graph in (rounded, rounded.float())
    )
    assert torch.equal(half.targets, single.targets)


def test_nothing_of_the_size_of_all_pairs_is_made():
    samples = 1_000_000
    own = np.arange(samples)
    graph = sparse.csr_array(
        (np.ones(samples), (own + 1) % samples, np.arange(samples + 1)), shape=(samples, samples)
    )
    labeler = PseudoLabeler(9, capacity=20, graph=graph)
    labels = labeler(random_logits(0, 12, CLASSES), torch.arange(12) * 1000)
    assert labels.targets.shape == (12, CLASSES)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ({"total_steps": 0}, ValueError, "total_steps must be 1 or above"),
        ({"capacity": 0}, ValueError, "capacity must be 1 or above"),
        ({"graph": GRAPH.toarray()}, TypeError, "dense"),
        ({"ramp": None}, TypeError, "ramp must be a number, got None"),
        ({"ramp": 2.0}, ValueError, r"ramp must be in \(0, 1\], got 2.0"),
        ({"semantic_weight": "strong"}, TypeError, "semantic_weight must be a number"),
        ({"semantic_weight": -1.0}, ValueError, "semantic_weight must be finite, 0 or above"),
        ({"kl_weight": "soft"}, TypeError, "kl_weight must hold real numbers"),
        ({"kl_weight": [1.0, 0.0]}, ValueError, "kl_weight must be above 0"),
        ({"epsilon": -1}, ValueError, "epsilon must be a number above 0"),
        ({"epsilon": None}, TypeError, "epsilon must be a number, got None"),
        ({"slack_entropy": "no"}, TypeError, "slack_entropy must be True or False"),
        ({"prior": "abc"}, TypeError, "prior must hold real numbers"),
        ({"prior": [0.5, 0.4]}, ValueError, "prior must sum to 1"),
        ({"tol": 0}, ValueError, "tol must be a finite number above 0"),
        ({"backend": "jax"}, ValueError, "backend must be one of"),
        ({"on_failure": "explode"}, ValueError, "on_failure must be one of"),
    ],
)
def test_what_a_labeler_is_not_made_of(argument, error, message):
    with pytest.raises(error, match=message):
        PseudoLabeler(**{"total_steps": 1} | argument)


def test_what_a_labeler_refuses():
    with pytest.raises(ValueError, match="heads=2"):
        PseudoLabeler(1, prior=AdaptivePrior(CLASSES))(*next(batches(1, leading=(2,))))
    with pytest.raises(ValueError, match="at most capacity"):
        PseudoLabeler(1, capacity=5)(*next(batches(1)))

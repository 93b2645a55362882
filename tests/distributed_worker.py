"""One of the processes that `test_distributed.py` starts with torchrun; writes what it found."""

import os
import pickle
import sys
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from distributed_cases import FAR_CASES, TOL, cases
from scipy import sparse

import ssot
from ssot.training import AdaptivePrior, PseudoLabeler

warnings.simplefilter("error")


def main(folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.set_num_threads(1)
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    found = {"cases": {}}
    for name, case in cases().items():
        arguments = case.arguments(case.rows(rank, size))
        found["cases"][name] = told(ssot.solve(**arguments, group=group))
    checks = (forms, far, streamed, batch, single, warm, stopped, labels, refused, unlabelled)
    for check in checks:
        found[check.__name__] = check(rank, size, group)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def told(solution):
    """Return what the test compares of a solution."""
    certificate = solution.certificate
    ranks = solution.problem.ranks
    return {
        "plan": np.asarray(solution.plan),
        "prices": np.asarray(solution.prices),
        "labels": np.asarray(solution.labels),
        "confidence": np.asarray(solution.confidence),
        "objective": solution.objective,
        "status": solution.status.name,
        "certificate": certificate,
        "exchanges": dict(getattr(ranks, "exchanges", {})),
        "payload": dict(getattr(ranks, "payload", {})),
    }


def own_rows(name, rank, size):
    case = cases()[name]
    return case.arguments(case.rows(rank, size))


def forms(rank, size, group):
    """Solve with every form of the graph that a rank may hold."""
    arguments = own_rows("graph, numpy", rank, size)
    graph = arguments.pop("graph")
    coo = graph.tocoo()
    shape = graph.shape
    tensors = {name: value for name, value in arguments.items() if name != "backend"}
    tensors["cost"] = torch.from_numpy(arguments["cost"])
    for name in ("prior", "sample_weight", "kl_weight"):
        if name in tensors:
            tensors[name] = torch.as_tensor(np.asarray(tensors[name]))
    entries = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    tensor = torch.sparse_coo_tensor(
        entries, torch.from_numpy(coo.data), shape, check_invariants=True
    )
    width = int(np.diff(graph.indptr).max(initial=0))
    width = max(int(n) for n in everyone(width))
    indices, weights = np.zeros((shape[0], width), np.int64), np.zeros((shape[0], width))
    for row in range(shape[0]):
        own = slice(graph.indptr[row], graph.indptr[row + 1])
        count = own.stop - own.start
        indices[row, :count], weights[row, :count] = graph.indices[own], graph.data[own]
    given = {
        "csr": (arguments, graph),
        "matrix": (arguments, sparse.csr_matrix(graph)),
        "dense": (arguments, graph.toarray()),
        "neighbours": (arguments, (indices, weights)),
        "sparse tensor": (tensors, tensor),
        "tensors of neighbours": (tensors, (torch.from_numpy(indices), torch.from_numpy(weights))),
    }
    return {
        form: told(ssot.solve(**options, graph=graph, group=group))
        for form, (options, graph) in given.items()
    }


def everyone(value):
    answers = [None] * dist.get_world_size()
    dist.all_gather_object(answers, value)
    return answers


def far(rank, size, group):
    """Solve as on devices that are far from the host, from memory and from blocks of rows."""
    from ssot.kernels import torch as backend

    near, backend._is_far = backend._is_far, lambda kernel: True
    try:
        found = {}
        for name in FAR_CASES:
            arguments = own_rows(name, rank, size) | {"backend": "torch"}
            found[name] = told(ssot.solve(**arguments, group=group))
            if len(arguments["cost"]):
                arguments["cost"] = ssot.RowBlocks(arguments["cost"], rows=50)
            found[f"{name}, streamed"] = told(ssot.solve(**arguments, group=group))
        backend._is_far = lambda kernel: rank > 0
        arguments = own_rows("many classes, torch", rank, size)
        found["the first alone is near"] = told(ssot.solve(**arguments, group=group))
        return found
    finally:
        backend._is_far = near


def streamed(rank, size, group):
    """Solve from blocks of rows, where a rank that has none passes an array; all may watch."""
    seen, found = [], {}
    for name in ("weighted", "graph, numpy", "masked", "many classes, numpy"):
        arguments = own_rows(name, rank, size)
        if len(arguments["cost"]):
            arguments["cost"] = ssot.RowBlocks(arguments["cost"], rows=7)
        callback = seen.append if rank == 0 else None
        found[name] = told(ssot.solve(**arguments, group=group, callback=callback))
    return found | {"seen": len(seen)}


def batch(rank, size, group):
    """Solve three problems at once."""
    arguments = own_rows("graph, numpy", rank, size)
    arguments["cost"] = np.stack([arguments["cost"] * scale for scale in (1.0, 0.5, 2.0)])
    return [told(solution) for solution in ssot.solve(**arguments, group=group)]


def single(rank, size, group):
    """Solve in float32."""
    arguments = own_rows("many rows", rank, size) | {"tol": 1e-6}
    arguments["cost"] = arguments["cost"].astype(np.float32)
    return told(ssot.solve(**arguments, group=group))


def warm(rank, size, group):
    """Start from a solution, and from its prices."""
    arguments = own_rows("graph, numpy", rank, size)
    first = ssot.solve(**arguments, group=group)
    return [told(ssot.solve(**arguments, group=group, init=i)) for i in (first, first.prices)]


def stopped(rank, size, group):
    """Stop by the callback of the last rank alone."""
    seen = []

    def stop(progress):
        seen.append(progress)
        return progress.step == 1

    arguments = own_rows("graph, numpy", rank, size)
    callback = stop if rank == size - 1 else None
    solution = ssot.solve(**arguments, group=group, callback=callback)
    return told(solution) | {"seen": len(seen)}


def labels(rank, size, group):
    """Label three steps of a data-parallel training; on several ranks a sample may be twice."""
    rng = np.random.default_rng(1)
    samples, classes, share = 60, 5, 12 // size
    graph = ssot.knn_graph(rng.normal(size=(samples, 3)), 5)
    prior = AdaptivePrior(classes, heads=2, momentum=0.5)
    labeler = PseudoLabeler(4, capacity=24 // size, graph=graph, prior=prior, tol=TOL, group=group)
    steps = []
    for _ in range(3):
        ids = rng.permutation(samples)[:12]
        logits = rng.normal(size=(2, 12, classes))
        own = slice(rank * share, (rank + 1) * share)
        result = labeler(torch.from_numpy(logits[:, own]), torch.from_numpy(ids[own]))
        steps.append((result.targets.numpy(), result.ids.numpy(), prior.value.numpy().copy()))
    return steps


def unlabelled(rank, size, group):
    """Return the error of each mistake that one rank makes with a labeler."""
    is_last = rank == size - 1
    rng = np.random.default_rng(0)
    graph = ssot.knn_graph(rng.normal(size=(60, 3)), 5)
    logits, ids = torch.from_numpy(rng.normal(size=(8, 5))), torch.arange(8) + 8 * rank

    def fails(*_):
        if is_last:
            raise KeyError("no such thing")
        return 0.5

    mistakes = {
        "ramp": {"ramp": fails},
        "weight": {"semantic_weight": fails},
        "graph": {"graph": graph[:48, :48] if is_last else graph},
        "no graph": {"graph": None if is_last else graph},
        "batch": {"capacity": 20},
    }
    found = {}
    for name, mistake in mistakes.items():
        labeler = PseudoLabeler(4, **{"graph": graph, "group": group, **mistake})
        rows = slice(0 if name == "batch" and is_last else None)
        try:
            labeler(logits[rows], ids[rows])
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    return found


def refused(rank, size, group):
    """Return the error of each mistake that one rank makes."""
    is_last = rank == size - 1
    good = own_rows("graph, numpy", rank, size)
    graph = good["graph"]

    def broken():
        cost = good["cost"].copy()
        cost[:1] = np.nan if is_last else cost[:1]
        return {"cost": cost}

    def fails(progress):
        raise KeyError("no such thing")

    readings = []

    def fails_later(start, stop):
        readings.append(start)
        if is_last and len(readings) > 3:
            raise OSError("the disk is gone")
        return good["cost"][start:stop]

    prices = ssot.solve(**good, group=group).prices
    mistakes = {
        "nan": broken(),
        "rho": {"rho": 0.3 if is_last else 0.4},
        "semantic weight": {"semantic_weight": 1.0 + is_last},
        "tol": {"tol": 1e-3 if is_last else 1e-4},
        "bad tol": {"tol": -1.0 if is_last else 1e-4},
        "batch": {"cost": np.stack([good["cost"]] * (2 + is_last))},
        "reading": {"cost": ssot.RowBlocks(good["cost"].shape, fails_later)},
        "no graph": {"graph": None if is_last else graph},
        "graph of own rows": {"graph": graph[:, : graph.shape[0]] if is_last else graph},
        "edge weight": {"graph": graph * np.nan if is_last else graph},
        "weight": {"sample_weight": np.full(len(good["cost"]), 1.0 / len(good["cost"]))},
        "init on one": {"init": prices if is_last else None},
        "other prices": {"init": prices + 0.1 * np.arange(len(prices)) * is_last},
        "callback": {"callback": fails if is_last else None},
        "backend": {"backend": "cupy" if is_last else "numpy"},
        "group": {"group": "world"},
    }
    attempts = {
        name: partial(ssot.solve, **{**good, "group": group, **mistake})
        for name, mistake in mistakes.items()
    }
    tol = {"tol": 1e-3 if is_last else 1e-10}
    bad_tol = {"tol": -1.0 if is_last else 1e-10}
    failure = {"on_failure": "hope" if is_last else "warn"}
    problem = ssot.Problem(good["cost"], rho=0.3, group=group)
    for name, mistake in {"tol": tol, "bad tol": bad_tol, "on_failure": failure}.items():
        attempts[f"{name} of a problem"] = partial(ssot.solve_problem, problem, **mistake)
    attempts["on_failure of a plan"] = partial(ssot.sp2ot_plan, **good, group=group, **failure)
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1])

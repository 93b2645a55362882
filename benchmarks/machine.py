"""What the benchmarks ran on, without anything that identifies the machine or its owner."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import threadpoolctl
import torch

import ssot

PACKAGES = ("numpy", "scipy", "numba", "torch", "POT", "ott-jax", "jax")


def describe():
    """Return processor, cores, thread counts and versions."""
    return {
        "processor": _processor(),
        "cores": _cores(),
        "threads": _threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "ssot": ssot.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _processor():
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores():
    """Return the number of cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _threads():
    pools = {pool["internal_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    return pools | {"torch": torch.get_num_threads()}


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def first_solve():
    """Return the seconds of the first solve in this process, and of the same solve again.

    The difference is what a compiled backend takes to compile, or to load what it compiled before.
    """
    cost = np.random.default_rng(0).random((500, 20), np.float32)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        solution = ssot.solve(cost, rho=0.5)
        seconds.append(time.perf_counter() - began)
    return {"backend": solution.backend, "first": seconds[0], "again": seconds[1]}

"""Time and memory on the device that computes: a CUDA device, or the CPU.

Contestants run in turns in one process. Each is prepared, which is not timed, and run twice: the
first run loads libraries and compiles, the second is judged and its memory measured. Then they take
turns. A CUDA device works behind the host's back, so that a clock is read only once it is idle.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import timing
from benchmarks.competitors import UnavailableError


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run share.

    Attributes
    ----------
    device : torch.device
    is_quick : bool
        Whether to measure much smaller problems, as a check of the code.
    repeats : int
        Most timed runs of each contestant.
    budget : float
        Seconds after which a contestant takes part in no further round; in the first all do.
    """

    device: torch.device
    is_quick: bool
    repeats: int
    budget: float

    def size(self, samples, classes):
        """Return the size of a problem, (N, K)."""
        return (128 + samples // 1000, 3 + classes // 50) if self.is_quick else (samples, classes)


@dataclass(frozen=True)
class Contestant:
    """A call to be timed.

    Attributes
    ----------
    name : str
    prepare : callable
        Returns the call. Raises `UnavailableError` where that cannot be.
    describe : callable
        Returns what is to be recorded of a result of the call, as a dictionary.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    describe: Callable[[Any], dict[str, Any]] = lambda _: {}


def synchronise(device):
    """Wait until a device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call, device):
    """Return the seconds that a call takes until the device is idle again, and its result."""

    def finished():
        result = call()
        synchronise(device)
        return result

    synchronise(device)
    return timing.timed(finished)


def in_turns(contestants, setting):
    """Return a record of each contestant, with the seconds of its runs."""
    records, calls = [], []
    for contestant in contestants:
        record, call = _warmed_up(contestant, setting.device)
        records.append(record)
        calls.append(call)
    for _ in range(setting.repeats):
        for record, call in zip(records, calls, strict=True):
            taken = record["seconds"]
            if call is not None and (not taken or sum(taken) + taken[-1] <= setting.budget):
                taken.append(timed(call, setting.device)[0])
    return [_with_statistics(record, records[0]) for record in records]


def first_line(error):
    """Return what an error says, without the details that Torch appends."""
    return str(error).partition("\n")[0]


def _warmed_up(contestant, device):
    """Return the record of the second run, and the call; None in its place where there is none."""
    record = {"competitor": contestant.name, "seconds": [], "note": ""}
    try:
        call = contestant.prepare()
        call()
        result, memory = _with_memory(call, device)
    except (UnavailableError, torch.cuda.OutOfMemoryError) as error:
        return record | {"note": first_line(error)}, None
    return record | memory | contestant.describe(result), call


def _with_memory(call, device):
    """Return the result of a call, and the bytes allocated before and at the peak; only of CUDA."""
    if device.type != "cuda":
        return call(), {}
    torch.cuda.empty_cache()
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    synchronise(device)
    peak = torch.cuda.max_memory_allocated(device)
    return result, {"bytes_before": before, "peak_bytes": peak}


def _with_statistics(record, first):
    taken, unit = record["seconds"], first["seconds"]
    if not taken:
        return record
    times = float(np.median(taken) / np.median(unit)) if unit else None
    statistics = {"median": float(np.median(taken)), "lowest": min(taken), "highest": max(taken)}
    return record | statistics | {"times": times}


def require_memory(wanted, device):
    """Raise `UnavailableError` where a device has fewer bytes to spare than wanted."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        available = torch.cuda.mem_get_info(device)[0]
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > available:
        raise UnavailableError(
            f"left out: needs {wanted / 2**30:.1f} GiB, of which {available / 2**30:.1f} are there"
        )


def describe(device):
    """Return what is known of a device, without anything that identifies its owner."""
    settings = {
        "type": device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tf32_allowed": torch.backends.cuda.matmul.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type != "cuda":
        return {"name": None, "driver": None} | settings
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "driver": _driver(),
        "bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    } | settings


def _driver():
    """Return the version of NVIDIA's driver, which Torch does not tell; None if nobody does."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0].strip() or None

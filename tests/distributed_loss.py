"""A rank that is lost in the middle of a solve, as `test_distributed.py` wants to see it."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from distributed_cases import cases

import ssot


def main(how, timeout, folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, size = dist.get_rank(), dist.get_world_size()
    case = cases()["graph, numpy"]
    arguments = case.arguments(case.rows(rank, size))
    # On a busy machine processes start far apart: the short timeout holds only once all are here.
    ssot.solve(**arguments, group=dist.group.WORLD)
    group = dist.new_group(timeout=timedelta(seconds=float(timeout)))
    lost_at = []

    def callback(progress):
        lost_at.append(time.perf_counter())
        if progress.step == 1 and rank == size - 1:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)

    try:
        ssot.solve(**arguments, group=group, callback=callback)
    except RuntimeError as error:
        waited = time.perf_counter() - lost_at[-1]
        report = f"{waited} {type(error).__name__}: {error}"
        (Path(folder) / f"{rank}.txt").write_text(report, encoding="utf-8")
        time.sleep(1)  # or torchrun would end the other before it has written
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The few N x K operations of the solver, one file for each array library."""

from ssot.kernels.protocol import Kernel, Plan, RowSums
from ssot.kernels.select import BACKENDS, check_backend, make_kernel

__all__ = ["BACKENDS", "Kernel", "Plan", "RowSums", "check_backend", "make_kernel"]

"""Gradients of plans and values by implicit differentiation; Torch is imported only when used."""

from ssot.gradients.attach import refuse_gradients, with_gradients

__all__ = ["refuse_gradients", "with_gradients"]

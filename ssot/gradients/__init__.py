"""Gradients of plans and values by implicit differentiation; Torch is imported only when used."""

from ssot.gradients.attach import with_gradients

__all__ = ["with_gradients"]

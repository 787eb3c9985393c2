"""`Sequential`: layers compiled to one native program, and what is told about it."""

from .clipping import clip_grad_norm
from .sequential import Sequential

__all__ = ["Sequential", "clip_grad_norm"]

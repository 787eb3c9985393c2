"""`Sequential`: layers compiled to one native program, and what is told about it."""

from .clipping import clip_grad_norm
from .ensemble import Ensemble
from .gradcheck import Check, GradcheckReport, gradcheck
from .sequential import Sequential

__all__ = ["Check", "Ensemble", "GradcheckReport", "Sequential", "clip_grad_norm", "gradcheck"]

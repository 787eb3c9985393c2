"""Checkpoints on disk: the safetensors format, and atomic writes."""

from .checkpoint import load

__all__ = ["load"]

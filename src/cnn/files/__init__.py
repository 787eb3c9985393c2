"""Checkpoints on disk: the safetensors format, and writes that are complete or not there."""

from .checkpoint import load

__all__ = ["load"]

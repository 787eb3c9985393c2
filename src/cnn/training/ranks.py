"""What calls with ``comm`` begin with; without it nothing of `distributed` is imported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

from .._configurable import names_arguments

F = TypeVar("F", bound=Callable[..., Any])


def among_ranks(comm: Any) -> contextlib.AbstractContextManager:
    """What is done in it, from the first check of an argument on, fails on all ranks of a communicator or on none."""
    if comm is None:
        return contextlib.nullcontext()
    from .distributed.group import Group

    return Group(comm).together(stoppable=False)


def takes_comm(function: F) -> F:
    """Wrap a function or method: `names_arguments`, among the ranks of the argument ``comm``."""
    return names_arguments(function, lambda arguments: among_ranks(arguments.get("comm")))

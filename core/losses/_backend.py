"""Which body computes a loss: the eager one, a compiled one, or the plain formula."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import torch

from ._reduction import check_choice

logger = logging.getLogger(__name__)

Backend = Literal["eager", "compiled", "reference"]
P = ParamSpec("P")
R = TypeVar("R")

_current: Backend = "eager"


def set_backend(name: Backend) -> None:
    """Choose how every loss is computed from here on, in the whole process.

    * `"eager"` (default): few passes over memory, in place, gradients formed by hand.
    * `"compiled"`: the same with its inner loops through `torch.compile`. The first call at a new
      shape takes 10 to 40 seconds. Where the compiler does not work (no C++ compiler, say), a
      warning is logged once and the eager body goes on.
    * `"reference"`: the formula as it is written, through autograd alone. Slower and larger, but it
      can be differentiated any number of times.

    All three give the same values and gradients up to rounding. Inside a function that is itself
    compiled (`torch.compile`), the eager body is traced.

    Raises:
        ConfigError: If the name is unknown.

    Example:
        >>> set_backend("eager")
    """
    check_choice("backend", name, get_args(Backend))
    global _current
    _current = name


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Compute the losses of a block with another backend (see :func:`set_backend`).

    Meant around forward; backward is then bound to what forward chose.

    Raises:
        ConfigError: If the name is unknown.

    Example:
        >>> import torch
        >>> from taskdistill.core.losses import kl_div
        >>> student = torch.zeros(1, 2, requires_grad=True)
        >>> with backend("reference"):
        ...     value = kl_div(student, torch.tensor([[2.0, 0.0]]))
        >>> (grad,) = torch.autograd.grad(value, student, create_graph=True)
        >>> grad.requires_grad
        True
    """
    before = _current
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def plain() -> bool:
    """Whether the formula itself is asked for."""
    return _current == "reference"


def compilable(body: Callable[P, R]) -> Callable[P, R]:
    """Let a body of plain tensor operations be compiled when that backend is on.

    The body takes and returns tensors (and numbers), changes none of its inputs, and is not
    differentiated itself: it is the inside of a `torch.autograd.Function`.
    """
    compiled: Any = None
    broken = False

    @wraps(body)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal compiled, broken
        if _current != "compiled" or broken or torch.compiler.is_compiling():
            return body(*args, **kwargs)
        if compiled is None:
            # A graph a shape: the code for unknown sizes is several times slower.
            compiled = torch.compile(body, dynamic=False)
        try:
            return compiled(*args, **kwargs)
        except Exception as error:  # whatever the compiler raises, the eager body is right
            result = body(*args, **kwargs)  # and where the fault is the input's, it says so
            broken = True
            logger.warning(
                "%s could not be compiled and is computed eagerly from here on: %s: %s",
                body.__name__.strip("_"),
                type(error).__name__,
                str(error).strip().partition("\n")[0],
            )
            return result

    return run


def use_compiled() -> bool:
    """Whether a compiled body is to be used: not inside a graph that is being compiled anyway."""
    return _current == "compiled" and not torch.compiler.is_compiling()

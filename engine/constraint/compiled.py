"""Loops over numbers, compiled by numba."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, to be compiled at its first call, which takes a second or two.

    Numba keeps the result in a file beside the source, or in the user's cache. If neither can be
    written, each process compiles anew.
    """

    @cache
    def made() -> Callable[..., Any]:
        import numba  # it takes half a second to import, and few workers ever need it

        try:
            return numba.njit(function, cache=True, nogil=True)  # type: ignore[no-any-return]
        except RuntimeError:
            return numba.njit(function, nogil=True)  # type: ignore[no-any-return]

    @wraps(function)
    def call(*args: Any) -> Any:
        return made()(*args)

    return call

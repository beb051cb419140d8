"""What a pybind11 class refuses, refused here too; and what a release does not have, left out."""

from __future__ import annotations

import enum
import functools
import inspect
import operator
from typing import TYPE_CHECKING, Any, TypeVar

from tensorrt_double.settings import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Class = TypeVar("Class", bound=type)
Accepts = Any
"""A class, a tuple of classes, or one of the markers below."""

BUFFER = "buffer"
_ABSENT = object()


def bound(**accepts: Accepts) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Check a method's arguments by name and type, as its C++ signature would.

    ``accepts`` names every parameter but self. ``int`` takes what has an index, BUFFER what has a
    buffer. None is taken only where the default is None. Raises TypeError.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        if set(accepts) != set(signature.parameters) - {"self"}:
            raise TypeError(f"{function.__qualname__}: each parameter needs a type")

        @functools.wraps(function)
        def checked(*given: object, **named: object) -> object:
            try:
                arguments = signature.bind(*given, **named).arguments
            except TypeError as error:
                raise _refused(function, given, named) from error
            for name, wanted in accepts.items():
                default = signature.parameters[name].default
                if name in arguments and not _fits(arguments[name], wanted, default):
                    raise _refused(function, given, named)
            return function(*given, **named)

        return checked

    return decorate


def _refused(function: Callable[..., Any], given: object, named: object) -> TypeError:
    return TypeError(
        f"{function.__name__}(): incompatible function arguments. Supported: "
        f"{function.__qualname__}{inspect.signature(function)}\n\nInvoked with: {given}, {named}"
    )


def _fits(value: object, wanted: Accepts, default: object) -> bool:
    if value is None:
        return default is None or (isinstance(wanted, tuple) and type(None) in wanted)
    if wanted is int:
        return _has(operator.index, value)
    if wanted == BUFFER:
        return _has(memoryview, value)
    return isinstance(value, wanted)


def _has(probe: Callable[[Any], object], value: object) -> bool:
    try:
        probe(value)
    except TypeError:
        return False
    return True


def available(
    *, since: tuple[int, ...] = (), until: tuple[int, ...] = (99,)
) -> Callable[[Any], Any]:
    """Mark a method or property of the releases ``since`` ≤ version < ``until``."""
    return lambda member: member if since <= VERSION < until else _ABSENT


def present(cls: Class) -> Class:
    """Take from a class what its release does not have."""
    for name, member in list(vars(cls).items()):
        if member is _ABSENT:
            delattr(cls, name)
    return cls


class MustInitialise(type):
    """Refuses a subclass whose ``__init__`` forgets its base's, as pybind11 does."""

    def __call__(cls, *given: object, **named: object) -> object:
        made = super().__call__(*given, **named)
        if not getattr(made, "_initialised", False):
            name = next(base.__name__ for base in cls.__mro__ if base.__module__ != cls.__module__)
            raise TypeError(f"{name}.__init__() must be called when overriding __init__")
        return made


class BoundEnum(enum.Enum):
    """An enum of pybind11: converts to int, but is none."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


def bound_enum(name: str, members: Mapping[str, int | None]) -> Any:  # noqa: ANN401 - a new class
    """Make an enum; a member whose value is None is not in this release."""
    return BoundEnum(name, {key: value for key, value in members.items() if value is not None})

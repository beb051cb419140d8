"""Print, as JSON, what a module named ``tensorrt`` or ``tensorrt_bindings`` offers.

Run as a script in a process of its own: ``python describe.py MODULE``. Real bindings tell their
parameters in docstrings, the double in its signatures.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from typing import Any

Parameters = list[list[str]]
"""The names of the parameters but self; one list for each overload."""


def describe(module: Any) -> dict[str, Any]:  # noqa: ANN401 - a module
    """Return functions, enums and classes, by name."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    functions = {
        name: value
        for name, value in public.items()
        if callable(value) and name not in classes and not inspect.ismodule(value)
    }
    enums = {name: value for name, value in classes.items() if hasattr(value, "__members__")}
    return {
        "version": module.__version__,
        "functions": {name: _parameters(name, value) for name, value in functions.items()},
        "enums": {
            name: {key: int(one) for key, one in value.__members__.items()}
            for name, value in enums.items()
        },
        "classes": {name: _members(value) for name, value in classes.items() if name not in enums},
        "returns": {
            f"{name}.{member}": answer
            for name, value in classes.items()
            for member in vars(value)
            if (answer := _answer(getattr(value, member))) in classes
        },
    }


def _members(cls: type) -> dict[str, Parameters | None]:
    """Return a class's members: parameters of methods, None for properties and constants."""
    found: dict[str, Parameters | None] = {}
    for base in reversed(cls.__mro__):
        if base.__module__ in {"builtins", "enum"} or "pybind11" in base.__module__:
            continue
        for name in (*vars(base), *getattr(base, "__annotations__", {})):
            if name == "__init__" or not name.startswith("_"):
                value = getattr(cls, name, None)
                called = callable(value) and not inspect.isclass(value)
                found[name] = _parameters(name, value) if called else None
    return found


def _parameters(name: str, value: Any) -> Parameters:  # noqa: ANN401 - a function
    if inspect.isfunction(value):
        return [[one for one in inspect.signature(value).parameters if one != "self"]]
    told = re.findall(rf"^(?:\d+\. )?{name}\((.*)\)(?: -> .*)?$", value.__doc__ or "", re.MULTILINE)
    return [_names(one) for one in told if not one.startswith("*args")]


def _names(told: str) -> list[str]:
    """Return the names in ``self: A, flags: Dict[int, int] = 0``."""
    flat = re.sub(r"<[^<>]*>", "", told)
    while re.search(r"\[[^\[\]]*\]", flat):
        flat = re.sub(r"\[[^\[\]]*\]", "", flat)
    names = [one.partition(":")[0].partition("=")[0].strip() for one in flat.split(",")]
    return [name for name in names if name not in {"", "self"}]


def _answer(value: Any) -> str:  # noqa: ANN401 - a method or property
    doc = getattr(value, "__doc__", None) or ""
    found = re.search(r"-> (?:[\w.]+\.|[\w:]+::I?)?(\w+)$", doc, re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    print(json.dumps(describe(importlib.import_module(sys.argv[1]))))

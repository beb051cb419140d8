"""Write TOML: plain values, tables and arrays of tables (the standard library only reads it)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def dump_toml(table: Mapping[str, Any]) -> str:
    """Return a TOML document that reads back as ``table``; keys whose value is None are left out.

    Values: str, bool, int, float, lists or tuples of these, mappings, and lists of mappings.
    Raises TypeError for any other.
    """
    return "\n".join(_lines(table, ())).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    present = {key: value for key, value in table.items() if value is not None}
    inner = {key: value for key, value in present.items() if _is_table(value) or _is_tables(value)}
    for key, value in present.items():
        if key not in inner:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        at = (*path, key)
        name = ".".join(_key(step) for step in at)
        if _is_table(value):
            yield f"\n[{name}]"
            yield from _lines(value, at)
            continue
        for row in value:
            yield f"\n[[{name}]]"
            yield from _lines(row, at)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_table, value))


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _text(key)


def _value(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    message = f"TOML has no {type(value).__name__}"
    raise TypeError(message)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

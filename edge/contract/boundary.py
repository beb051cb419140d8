"""Parse once at the boundary: every wrong field of a document, by its path, in one error."""

from __future__ import annotations

import difflib
import json
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, RootModel, ValidationError

from edge.contract.errors import ConfigError, IcecamError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Model = TypeVar("Model", bound=BaseModel)

_SHOWN = 60
_CREDENTIALS = re.compile(r"(?<=://)\S*@")


def parse(
    model: type[Model],
    data: object,
    *,
    where: str,
    error: type[IcecamError] = ConfigError,
    then: str = "",
) -> Model:
    """Validate ``data`` (mappings, lists, plain values) as ``model``.

    Raises ``error`` naming ``where``, the path of every wrong field, what was expected and found.
    """
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        raise error("\n".join(_sentences(problem, model, where)), then=then) from None


def parse_json(
    model: type[Model],
    text: bytes | str,
    *,
    where: str,
    error: type[IcecamError] = ConfigError,
    then: str = "",
    ignore_unknown: bool = False,
) -> Model:
    """Like ``parse``, from JSON text; ``ignore_unknown`` lets newer producers add fields."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not JSON ({problem})", then=then) from None
    try:
        return model.model_validate_json(text, extra="ignore" if ignore_unknown else None)
    except ValidationError as problem:
        raise error("\n".join(_sentences(problem, model, where)), then=then) from None


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """Parse a TOML file; ConfigError where it is missing, not UTF-8 or not TOML."""
    try:
        with path.open("rb") as file:
            table: dict[str, Any] = tomllib.load(file)
            return table
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror})", expected=what) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ConfigError(f"{path}: not TOML ({problem})", expected=what) from None


def _sentences(problem: ValidationError, model: type[BaseModel], where: str) -> Iterator[str]:
    details = problem.errors(include_url=False)
    wrong = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}
    for detail in details:
        if detail["type"] == "too_short" and detail["loc"] in wrong:
            continue  # only because pydantic counts none of the items that are wrong themselves
        path = _path(detail["loc"], model)
        sentence = f"{where}: {path}: " if path else f"{where}: "
        if detail["type"] == "extra_forbidden":
            yield sentence + _unknown_key(detail["loc"], model)
        elif detail["type"] == "missing":
            yield sentence + "missing; it has no default"
        else:
            yield f"{sentence}{_expectation(detail['msg'])}, found {shown(detail['input'])}"


def shown(value: object) -> str:
    """Return a wrong value for a message: shortened, and without the credentials of a URL."""
    text = _CREDENTIALS.sub("…@", repr(value))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _expectation(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = re.sub(r"^\w+ should ", "to ", message)
    return message if message.startswith("expected") else f"expected {message}"


def _path(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Write a location as ``cameras[1].schedule.every``, without pydantic's names of variants."""
    path = ""
    levels = list(_models_in(model))
    for position, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
            continue
        inner = _models_below(levels, step)
        known = any(step in level.model_fields or _aliased(level, step) for level in levels)
        if levels and not known and position < len(location) - 1:
            continue
        path += f".{step}"
        levels = inner
    return path.removeprefix(".")


def _unknown_key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = _keys_at(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]!r}?"
    return f"unknown key; known here: {', '.join(sorted(known))}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys a mapping at ``location`` may hold, over all variants of a union."""
    levels = list(_models_in(model))
    for step in location:
        if isinstance(step, str):
            levels = _models_below(levels, step) or levels
    return sorted(
        {field.alias or key for level in levels for key, field in level.model_fields.items()}
    )


def _models_below(levels: list[type[BaseModel]], step: str) -> list[type[BaseModel]]:
    return [
        found
        for level in levels
        if step in level.model_fields
        for found in _models_in(level.model_fields[step].annotation)
    ]


def _aliased(level: type[BaseModel], step: str) -> bool:
    return any(field.alias == step for field in level.model_fields.values())


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        yield from _models_in(annotation.model_fields["root"].annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _models_in(get_args(annotation)[0])
    else:
        for argument in get_args(annotation):
            yield from _models_in(argument)

"""The operator tables of TensorRT's ONNX parser, by version."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, TypeAlias

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Release: TypeAlias = tuple[int, ...]
_WRITTEN = re.compile(r"\d+(\.\d+){0,3}")
_UNSUPPORTED = "-"
_NOT_STATED = "?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One TensorRT version.

    name: major.minor. table: the release whose table stands for it, older where the version's own
    was not at hand. opsets: the first and last ONNX opset that the parser is documented for.
    """

    name: str
    table: str
    opsets: tuple[int, int]

    @property
    def release(self) -> Release:
        """Return (major, minor)."""
        return _release(self.name)


@cache
def known_versions() -> tuple[Version, ...]:
    """Return the versions that have a table, oldest first."""
    return tuple(
        Version(
            name=row["tensorrt"],
            table=row["table"],
            opsets=(int(row["opset_from"]), int(row["opset_to"])),
        )
        for row in _rows("versions.tsv")
    )


def find_version(written: str) -> Version:
    """Return what is known of a version such as ``10.3`` or ``10.13.3``.

    The newest known version that is not newer stands for one that has no table of its own.
    Raises ConfigError for what is no version, or is older than icecam supports.
    """
    known = known_versions()
    if _WRITTEN.fullmatch(written) is None:
        raise ConfigError(
            f"TensorRT version {written!r}",
            expected=f"a version such as {known[0].name}",
            then="Nothing was checked.",
        )
    release = (*_release(written), 0)[:2]
    older = [version for version in known if version.release <= release]
    if not older:
        raise ConfigError(
            f"TensorRT {written}",
            expected=f"{known[0].name} or newer, as JetPack 6.1 and later bring it",
            then="icecam does not run on older ones; nothing was checked.",
        )
    name = ".".join(map(str, release))
    return Version(name=name, table=older[-1].table, opsets=older[-1].opsets)


@cache
def operator_table(table: str) -> Mapping[str, frozenset[str] | None]:
    """Return the element types that each operator takes in a release's table.

    None: the operator is listed as not supported. An empty set: supported, types not stated.
    """
    newest: dict[str, tuple[Release, str]] = {}
    for row in _rows("operators.tsv"):
        since = _release(row["since"])
        before = newest.get(row["operator"])
        if since <= _release(table) and (before is None or before[0] < since):
            newest[row["operator"]] = since, row["types"]
    return {operator: _types(types) for operator, (_, types) in newest.items()}


def _types(written: str) -> frozenset[str] | None:
    if written == _UNSUPPORTED:
        return None
    return frozenset() if written == _NOT_STATED else frozenset(written.split())


def _release(written: str) -> Release:
    return tuple(map(int, written.split(".")))


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = files("export.operators").joinpath(name).read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    yield from csv.DictReader(lines, delimiter="\t")

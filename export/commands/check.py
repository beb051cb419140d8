"""``python -m export check``: which TensorRT versions take a bundle's graphs, and what fails."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from edge.contract.bundle import open_bundle
from edge.contract.errors import BundleError
from edge.engine.ladder import to_compile
from export.operators.refusals import Refusal, examine, refusals_of
from export.operators.tables import find_version, known_versions
from export.static_check import graph_findings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from export.operators.tables import Version

BARE = ".onnx"
MOST_REASONS = 20
_NOTHING = "Nothing was checked."


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedGraph:
    """One graph and what each version refuses of it.

    rules: what breaks the rules of the one graph, which no TensorRT version minds. refused:
    version → reasons, none where the version takes the graph.
    """

    name: str
    file: str
    size_bytes: int
    precision: str
    rules: tuple[str, ...]
    refused: Mapping[str, tuple[Refusal, ...]]

    @property
    def taken_by_all(self) -> bool:
        """Say whether every version takes it."""
        return not any(self.refused.values())


def check(path: Path, versions: Sequence[str], *, as_json: bool) -> bool:
    """Check a bundle or a bare .onnx file, and print what was found.

    versions: all known ones where none is given. Returns whether every version takes what it would
    compile for the full ensemble. Raises ConfigError for a version, BundleError for a file, that
    cannot be checked.
    """
    chosen = [find_version(one) for one in versions] or list(known_versions())
    bundle = None if path.suffix == BARE else open_bundle(path)
    graphs = [_bare(path, chosen)] if bundle is None else list(_of_bundle(bundle, chosen))
    takes = _compiled(bundle, graphs).taken_by_all
    if as_json:
        told = {"takes": takes, **_told(path, bundle, chosen, graphs)}
        print(json.dumps(told, indent=1))  # noqa: T201 - for a program
    else:
        _show(path, bundle, chosen, graphs)
    return takes


def _compiled(bundle: Bundle | None, graphs: Sequence[CheckedGraph]) -> CheckedGraph:
    """Return the graph that TensorRT would compile for the full ensemble."""
    if bundle is None:
        return graphs[0]
    wanted = to_compile(bundle.manifest)[0].name
    return next(graph for graph in graphs if graph.name == wanted)


def _of_bundle(bundle: Bundle, versions: Sequence[Version]) -> Iterator[CheckedGraph]:
    for graph in bundle.manifest.graphs:
        yield _checked(
            bundle.read(graph.file),
            versions,
            name=graph.name,
            file=graph.file,
            precision=graph.precision,
            where=f"{bundle.path}: {graph.file}",
        )


def _bare(path: Path, versions: Sequence[Version]) -> CheckedGraph:
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise BundleError(
            f"{path}: cannot be read ({problem.strerror or problem})", then=_NOTHING
        ) from None
    return _checked(
        raw, versions, name=path.stem, file=path.name, precision="not stated", where=str(path)
    )


def _checked(
    raw: bytes, versions: Sequence[Version], *, name: str, file: str, precision: str, where: str
) -> CheckedGraph:
    model = _read_model(raw, where)
    try:
        examined = examine(model)
    except onnx.shape_inference.InferenceError as problem:
        raise BundleError(
            f"{where}: a graph that cannot be inferred ({problem})", then=_NOTHING
        ) from None
    return CheckedGraph(
        name=name,
        file=file,
        size_bytes=len(raw),
        precision=precision,
        rules=tuple(graph_findings(model)),
        refused={version.name: tuple(refusals_of(examined, version)) for version in versions},
    )


def _read_model(raw: bytes, where: str) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(raw)
    except DecodeError:
        model = onnx.ModelProto()
    if not model.graph.node:
        raise BundleError(
            f"{where}: holds no graph ({len(raw)} bytes)", expected="an ONNX model", then=_NOTHING
        )
    return model


def _told(
    path: Path,
    bundle: Bundle | None,
    versions: Sequence[Version],
    graphs: Sequence[CheckedGraph],
) -> dict[str, object]:
    manifest = None if bundle is None else bundle.manifest
    return {
        "path": str(path),
        "bundle": None if manifest is None else {"id": manifest.id, "serial": manifest.serial},
        "tensorrt": [asdict(version) for version in versions],
        "graphs": [asdict(graph) for graph in graphs],
        "members": []
        if manifest is None
        else [{"name": one.name, "unresolved": one.unresolved} for one in manifest.members],
        "files": []
        if manifest is None
        else [{"path": one.path, "size_bytes": one.size} for one in manifest.files],
    }


def _show(
    path: Path,
    bundle: Bundle | None,
    versions: Sequence[Version],
    graphs: Sequence[CheckedGraph],
) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    whose = "" if bundle is None else f": bundle {bundle.manifest.id}"
    console.print(f"{path}{whose}, checked against the operator tables of TensorRT's parser:")
    console.print(_table(versions, graphs))
    if any(version.name != version.table for version in versions):
        console.print("A version without a table of its own is held against the one named beside.")
    for graph in graphs:
        for line in [*_reasons(graph), *(f"not the one graph: {rule}" for rule in graph.rules)]:
            console.print(f"{graph.name}: {line}")
    for line in _sizes(bundle, graphs):
        console.print(line)
    for line in _unresolved(bundle):
        console.print(line)


def _table(versions: Sequence[Version], graphs: Sequence[CheckedGraph]) -> Table:
    table = Table("TensorRT", "table of", *(f"{graph.name}\n{graph.precision}" for graph in graphs))
    for version in versions:
        cells = (_cell(graph.refused[version.name]) for graph in graphs)
        table.add_row(version.name, version.table, *cells)
    return table


def _cell(refused: Sequence[Refusal]) -> str:
    if not refused:
        return "takes it"
    first = refused[0].operator or refused[0].why.partition(":")[0]
    return f"refuses {first}" + (f", and {len(refused) - 1} more" if len(refused) > 1 else "")


def _reasons(graph: CheckedGraph) -> Iterator[str]:
    """Yield each reason once, with the versions that it holds for."""
    holds: dict[Refusal, list[str]] = {}
    for version, refused in graph.refused.items():
        for one in refused:
            holds.setdefault(one, []).append(version)
    for one, versions in list(holds.items())[:MOST_REASONS]:
        whose = "every version" if len(versions) == len(graph.refused) else ", ".join(versions)
        yield f"{whose}: {one.describe()}"
    if len(holds) > MOST_REASONS:
        yield f"and {len(holds) - MOST_REASONS} reasons more; --json lists them all"


def _sizes(bundle: Bundle | None, graphs: Sequence[CheckedGraph]) -> Iterator[str]:
    for file, size in {graph.file: graph.size_bytes for graph in graphs}.items():
        yield f"{file}: {_megabytes(size)}"
    if bundle is not None:
        named = {graph.file for graph in graphs}
        others = [one.size for one in bundle.manifest.files if one.path not in named]
        yield f"{len(others)} files beside: {_megabytes(sum(others))}"


def _megabytes(size: int) -> str:
    """Return a size in MB, or in kB below one."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{math.ceil(size / 1e3)} kB"  # noqa: PLR2004


def _unresolved(bundle: Bundle | None) -> Iterator[str]:
    for member in () if bundle is None else bundle.manifest.members:
        if member.unresolved is not None:
            yield (
                f"member {member.name}: {member.unresolved} suppressions of overlapping instances "
                "left undecided when the bundle was made"
            )

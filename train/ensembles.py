"""Ensembles: which runs decide together, and how much each one counts (``ensemble.toml``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge import __version__
from edge.contract.boundary import parse, read_toml
from edge.contract.bundle import Name, Positive
from edge.contract.errors import ConfigError
from edge.contract.files import make_folder, write_atomically
from edge.contract.messages import Sha256
from train.runs import read_run
from train.toml import dump_toml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge.contract.classes import Classes
    from edge.contract.frames import Size
    from train.runs import Run

ENSEMBLE_SCHEMA: Literal["icecam.ensemble/1"] = "icecam.ensemble/1"
ENSEMBLE_ENDING = ".toml"

HowWeighed = Literal["fitted", "equal"]
HowCalibrated = Literal["fitted", "none"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EnsembleMember(_Part):
    """One run in an ensemble. run: its folder, relative to the file, with forward slashes."""

    name: Name
    run: Annotated[str, Field(min_length=1)]
    architecture: str
    model_sha256: Sha256
    weight: Positive
    temperature: Positive


class EnsembleFile(_Part):
    """What an ``ensemble.toml`` says.

    weighed, calibrated: how weights and temperatures were found (equal: the fitted ones did not do
    better on images left out; none: all 1); validation: on what; figures: what was measured there.
    """

    schema_id: Literal["icecam.ensemble/1"] = Field(default=ENSEMBLE_SCHEMA, alias="schema")
    icecam: str
    weighed: HowWeighed
    calibrated: HowCalibrated
    members: Annotated[tuple[EnsembleMember, ...], Field(min_length=1)]
    validation: dict[str, str | int] = {}
    figures: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """An ``ensemble.toml`` and its runs, in the order of the file."""

    path: Path
    file: EnsembleFile
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """What to call it in a report: the file's name."""
        return self.path.stem

    @property
    def class_map(self) -> Classes:
        """What the members' classes mean."""
        return self.runs[0].class_map

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per run, above 0; only their ratios matter."""
        return tuple(member.weight for member in self.file.members)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """What each run's logits are divided by."""
        return tuple(member.temperature for member in self.file.members)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighing:
    """One weight and one temperature for each of some runs, and how they were found."""

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    how_weighed: HowWeighed
    how_calibrated: HowCalibrated


def write_ensemble(
    path: Path,
    runs: Sequence[Run],
    weighing: Weighing,
    *,
    validation: Mapping[str, str | int] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Ensemble:
    """Write an ``ensemble.toml``, whole or not at all; the runs stay where they are.

    Raises ConfigError: runs that do not fit together, a wrong value, a folder that cannot be used,
    a file that cannot be written.
    """
    require_alike(runs)
    make_folder(path.parent, what="the ensemble's folder")
    members = [
        {
            "name": run.name,
            "run": _relative(run.folder, path.parent),
            "architecture": run.architecture,
            "model_sha256": run.file.model_sha256,
            "weight": weight,
            "temperature": temperature,
        }
        for run, weight, temperature in zip(
            runs, weighing.weights, weighing.temperatures, strict=True
        )
    ]
    fields = {
        "schema": ENSEMBLE_SCHEMA,
        "icecam": __version__,
        "weighed": weighing.how_weighed,
        "calibrated": weighing.how_calibrated,
        "members": members,
        "validation": dict(validation or {}),
        "figures": dict(figures or {}),
    }
    file = parse(EnsembleFile, fields, where=str(path))
    try:
        write_atomically(path, dump_toml(fields).encode())
    except OSError as problem:
        raise ConfigError(
            f"{path}: cannot be written ({problem.strerror})",
            expected="room for a file there",
            then="The weights are lost; the runs, and a file that was there, are as they were.",
        ) from None
    return Ensemble(path=path, file=file, runs=tuple(runs))


def read_ensemble(path: Path) -> Ensemble:
    """Read an ``ensemble.toml`` and its runs.

    Raises ConfigError: a wrong field, a run that is missing or damaged, or that is another than it
    was when it was weighed, runs that do not fit together.
    """
    raw = read_toml(path, what="an ensemble.toml, as python -m train ensemble writes it")
    file = parse(EnsembleFile, raw, where=str(path))
    runs = tuple(_run_of(path, member) for member in file.members)
    require_alike(runs, then="Nothing was loaded.")
    return Ensemble(path=path, file=file, runs=runs)


def require_alike(runs: Sequence[Run], *, then: str = "Nothing was written.") -> None:
    """Raise ConfigError where runs share a name or differ in class map or input size."""
    first = runs[0]
    for position, run in enumerate(runs[1:], start=1):
        if run.name in {earlier.name for earlier in runs[:position]}:
            raise ConfigError(
                f"two runs are named {run.name!r}",
                expected="a name of its own for each member",
                then=then,
            )
        if run.class_map.signature != first.class_map.signature:
            raise ConfigError(
                f"class maps differ: run {first.name!r} has {first.class_map.describe()}; run "
                f"{run.name!r} has {run.class_map.describe()}",
                expected="the same names and roles in the same order",
                then=then,
            )
        if run.input_size != first.input_size:
            raise ConfigError(
                f"input sizes differ: run {first.name!r} {first.input_size}, run {run.name!r} "
                f"{run.input_size}",
                expected="one (height, width) for all members",
                then=then,
            )


def common_input(runs: Sequence[Run]) -> tuple[Size, float]:
    """Return the (height, width) of alike runs, and the least distortion that one of them allows.

    That is the ``max_anisotropy`` of frames that all of them may see.
    """
    return runs[0].input_size, min(run.max_anisotropy for run in runs)


def _relative(folder: Path, base: Path) -> str:
    return Path(os.path.relpath(folder.absolute(), base.absolute())).as_posix()


def _run_of(path: Path, member: EnsembleMember) -> Run:
    run = read_run(path.parent / member.run)
    known = (member.name, member.architecture, member.model_sha256)
    if (run.name, run.architecture, run.file.model_sha256) != known:
        raise ConfigError(
            f"{path}: run {member.name!r} was changed since it was weighed: {run.folder} holds "
            f"{run.name!r}, {run.architecture}, model {run.file.model_sha256[:12]}…",
            expected=f"{member.name!r}, {member.architecture}, model {member.model_sha256[:12]}…",
            then="Weigh the runs again: python -m train ensemble RUN… -o " + path.name,
        )
    return run

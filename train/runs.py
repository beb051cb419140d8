"""Runs: one member's training result on disk.

A run folder holds ``model.safetensors``, ``metrics.json`` and, written last, ``run.toml``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge import __version__
from edge.contract.boundary import parse, parse_json, read_toml
from edge.contract.bundle import InputSize, Name
from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from edge.contract.files import write_atomically
from edge.contract.messages import Sha256
from train.toml import dump_toml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edge.contract.frames import Size
    from train.models.architectures import Member

RUN_SCHEMA: Literal["icecam.run/1"] = "icecam.run/1"
RUN = "run.toml"
MODEL = "model.safetensors"
METRICS = "metrics.json"
STATE = "state.ckpt"
"""What an unfinished run keeps, to go on from the last whole epoch."""

Count = Annotated[int, Field(ge=0)]
Triple = tuple[float, float, float]
Option = bool | int | float | str | tuple[int, ...]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Training(_Part):
    """How a member was trained. ``best_epoch`` counts from 1; None where nothing was validated.

    source: where the dataset.toml was; data: a digest of its images, labels and splits; held_out:
    the group that was kept back; started_from: the run whose parameters it began with;
    stopped_after: the epochs that were trained where patience ran out.
    """

    dataset: str
    seed: int
    epochs: Count
    source: str = ""
    data: str = ""
    held_out: str = ""
    images: Count = 0
    batch_size: Count = 0
    learning_rate: Annotated[float, Field(ge=0)] = 0.0
    precision: str = "32-true"
    class_balance: str = "none"
    augmentation: str = "none"
    crop: tuple[int, int] | None = None
    frozen: tuple[str, ...] = ()
    encoder_parameters: str = "none"
    started_from: str = ""
    made_anew: tuple[str, ...] = ()
    best_epoch: Annotated[int, Field(ge=1)] | None = None
    stopped_after: Annotated[int, Field(ge=1)] | None = None
    validation_miou: Annotated[float, Field(ge=0, le=1)] | None = None


class _Named(_Part):
    name: Name


class _Images(BaseModel):
    """The names of the images that a member has seen."""

    model_config = ConfigDict(frozen=True)

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()


class _Metrics(BaseModel):
    """Of ``metrics.json``, what is read again."""

    model_config = ConfigDict(frozen=True)

    images: _Images = _Images()


class RunFile(_Part):
    """What a ``run.toml`` says. ``mean`` and ``std`` are RGB on the scale 0..255."""

    schema_id: Literal["icecam.run/1"] = Field(default=RUN_SCHEMA, alias="schema")
    name: Name
    icecam: str
    architecture: str
    encoder: str
    parameters: Annotated[int, Field(gt=0)]
    model_sha256: Sha256
    mean: Triple
    std: Triple
    options: dict[str, Option]
    input: InputSize
    training: Training
    classes: Classes


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run: its folder, and what its ``run.toml`` says."""

    folder: Path
    file: RunFile

    @property
    def name(self) -> str:
        """The member's name in an ensemble."""
        return self.file.name

    @property
    def architecture(self) -> str:
        """A key of ``train.models.architectures.ARCHITECTURES``."""
        return self.file.architecture

    @property
    def encoder(self) -> str:
        """The encoder's name, as segmentation-models-pytorch knows it."""
        return self.file.encoder

    @property
    def class_map(self) -> Classes:
        """What the member's classes mean."""
        return self.file.classes

    @property
    def input_size(self) -> Size:
        """(height, width) of the frames it was trained on."""
        return self.file.input.height, self.file.input.width

    @property
    def max_anisotropy(self) -> float:
        """How far frames may be distorted to that size."""
        return self.file.input.max_anisotropy

    def training_summary(self) -> dict[str, str | int | float | None]:
        """Return how it was trained, flat, for a bundle's manifest: no path of this machine."""
        said = self.file.training.model_dump(exclude={"source"}, exclude_defaults=True)
        plain = {
            key: " ".join(map(str, value)) if isinstance(value, tuple) else value
            for key, value in said.items()
        }
        return {**plain, "icecam": self.file.icecam}


def write_run(  # noqa: PLR0913 - each is a fact of the run, named at the call
    folder: Path,
    member: Member,
    *,
    name: str,
    class_map: Classes,
    input_size: Size,
    training: Training,
    max_anisotropy: float = 1.2,
    metrics: Mapping[str, Any] | None = None,
) -> Run:
    """Write a run: parameters and metrics first, ``run.toml`` last, each whole or not at all.

    input_size: (height, width). Raises ConfigError where the folder holds a run already or the
    member cannot take that size, ValueError where it has another number of classes than the map.
    """
    member.check_size(input_size)
    if member.classes != len(class_map):
        message = f"a member of {member.classes} classes, a map of {len(class_map)}"
        raise ValueError(message)
    refuse_finished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = _parameters(member)
    fields = {
        "schema": RUN_SCHEMA,
        "name": name,
        "icecam": __version__,
        "architecture": member.architecture,
        "encoder": member.encoder,
        "parameters": member.parameter_count,
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "mean": member.normalisation[0],
        "std": member.normalisation[1],
        "options": member.options.model_dump(),
        "input": {
            "height": input_size[0],
            "width": input_size[1],
            "max_anisotropy": max_anisotropy,
        },
        "training": training.model_dump(),
        "classes": class_map.model_dump(),
    }
    run = Run(folder=folder, file=parse(RunFile, fields, where=str(folder / RUN)))
    write_atomically(folder / MODEL, model)
    write_atomically(folder / METRICS, json.dumps(dict(metrics or {}), indent=1).encode())
    write_atomically(folder / RUN, dump_toml(fields).encode())
    return run


def read_run(folder: Path) -> Run:
    """Read ``run.toml`` and check the model's hash.

    Raises ConfigError: no run, an unfinished one, an unknown schema, a wrong field, a model that
    is missing or differs.
    """
    if not (folder / RUN).is_file() and (folder / STATE).is_file():
        raise ConfigError(
            f"{folder}: this run is not finished ({STATE}, but no {RUN})",
            then="Run the same fit again: it goes on after the last whole epoch.",
        )
    raw = read_toml(folder / RUN, what="a run folder, as fit writes it")
    run = Run(folder=folder, file=parse(RunFile, raw, where=str(folder / RUN)))
    _checked_model(run)
    return run


def images_seen(run: Run) -> frozenset[str]:
    """Return the names of the images that trained the run or chose its epoch, none where unknown.

    Raises ConfigError where ``metrics.json`` is damaged.
    """
    where = run.folder / METRICS
    if not where.is_file():
        return frozenset()
    images = parse_json(_Metrics, where.read_bytes(), where=str(where)).images
    return frozenset(images.train + images.validation)


def load_member(run: Run) -> Member:
    """Build the run's member with its parameters, in eval mode, on the CPU.

    Raises ConfigError where the parameters are damaged or are not those of the architecture.
    """
    import safetensors.torch  # noqa: PLC0415 - torch is not needed to read a run
    from safetensors import SafetensorError  # noqa: PLC0415 - with it

    from train.models.architectures import build_member  # noqa: PLC0415 - loads torch

    file = run.file
    member = build_member(
        file.architecture,
        file.encoder,
        class_map=file.classes,
        options=file.options,
        mean=file.mean,
        std=file.std,
    )
    where = run.folder / MODEL
    try:
        member.load_state_dict(safetensors.torch.load(_checked_model(run)))
    except (SafetensorError, RuntimeError) as problem:
        raise ConfigError(
            f"{where}: not the parameters of {file.architecture} with {file.encoder} "
            f"({str(problem).splitlines()[0]})"
        ) from None
    return member.eval()


def check_name(name: str) -> None:
    """Raise ConfigError where a run could not be called so."""
    parse(_Named, {"name": name}, where="run")


def refuse_finished(folder: Path) -> None:
    """Raise ConfigError where a folder holds a finished run: it is never overwritten."""
    if (folder / RUN).exists():
        raise ConfigError(
            f"{folder}: holds a finished run",
            expected="a new folder",
            then="Nothing was changed; name another folder or remove this one.",
        )


def _parameters(member: Member) -> bytes:
    import safetensors.torch  # noqa: PLC0415 - torch is not needed to read a run

    tensors = {name: value.cpu().contiguous() for name, value in member.state_dict().items()}
    return safetensors.torch.save(tensors)


def _checked_model(run: Run) -> bytes:
    where = run.folder / MODEL
    try:
        model = where.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{where}: cannot be read ({problem.strerror})") from None
    found = hashlib.sha256(model).hexdigest()
    if found != run.file.model_sha256:
        raise ConfigError(
            f"{where}: its sha256 is {found[:12]}…",
            expected=f"{run.file.model_sha256[:12]}…, as {RUN} says",
            then="It was changed or only half copied; bring the run's own file.",
        )
    return model

"""Before the first step: a plan with nothing left open, and a member with what it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edge.contract.errors import ConfigError
from train.fit.plan import Plan, digest, quick_precision
from train.models.architectures import build_member, same_outputs, settle
from train.models.encoders import load_encoder_parameters, normalisation_of, take_parameters
from train.runs import load_member, read_run

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.frames import Size
    from train.data.dataset import Dataset
    from train.fit.plan import Choice, Settings
    from train.models.members import Member
    from train.runs import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Began:
    """A member before its first step, and where its parameters come from.

    start: the run it begins with; encoder_parameters: what was loaded, for ``run.toml``;
    made_anew: the parts that the start had for other classes.
    """

    member: Member
    start: Run | None
    encoder_parameters: str
    made_anew: tuple[str, ...]


def settled_plan(dataset: Dataset, choice: Choice, settings: Settings, start: Path | None) -> Plan:
    """Return the plan of a fit with nothing left open. Raises ConfigError."""
    encoder, options = settle(choice.architecture, choice.encoder, choice.options)
    precision = quick_precision() if settings.precision == "auto" else settings.precision
    return Plan(
        choice=choice.model_copy(
            update={"encoder": encoder, "options": options.model_dump(mode="json")}
        ),
        settings=settings.model_copy(update={"precision": precision}),
        dataset=dataset.name,
        data=digest(dataset),
        classes=dataset.class_map.describe(),
        start=None if start is None else read_run(start).file.model_sha256,
    )


def begin(plan: Plan, dataset: Dataset, start: Path | None) -> Began:
    """Build the plan's member with what it begins with. Raises ConfigError."""
    choice = plan.choice
    before = None if start is None else read_run(start)
    mean, std = (
        normalisation_of(choice.encoder, choice.encoder_parameters)
        if before is None
        else (before.file.mean, before.file.std)
    )
    torch.manual_seed(plan.settings.seed)
    member = build_member(
        choice.architecture,
        choice.encoder,
        class_map=dataset.class_map,
        options=choice.options,
        mean=mean,
        std=std,
    )
    _check_sizes(member, choice.size, plan.settings.crop)
    if member.kind == "floes" and plan.settings.class_balance != "none":
        raise ConfigError(
            f"class_balance {plan.settings.class_balance} for {choice.architecture}",
            expected="none: it learns floes, not shares of pixels",
        )
    if before is None:
        loaded = load_encoder_parameters(member, choice.encoder_parameters)
        return Began(member=member, start=None, encoder_parameters=loaded.describe(), made_anew=())
    made_anew = take_parameters(
        member,
        load_member(before).state_dict(),
        same_classes=same_outputs(member.kind, before.class_map, dataset.class_map),
    )
    return Began(
        member=member,
        start=before,
        encoder_parameters=before.file.training.encoder_parameters,
        made_anew=made_anew,
    )


def check_member(dataset: Dataset, choice: Choice, settings: Settings) -> None:
    """Raise ConfigError where ``fit`` would, for its network, encoder, options and sizes."""
    begin(settled_plan(dataset, choice, settings, None), dataset, None)


def _check_sizes(member: Member, size: Size, crop: Size | None) -> None:
    member.check_size(size)
    if crop is None:
        return
    member.check_size(crop)
    if crop[0] > size[0] or crop[1] > size[1]:
        raise ConfigError(
            f"a crop of {crop[0]}x{crop[1]} from frames of {size[0]}x{size[1]} (height x width)",
            expected="a crop no larger than the frames",
        )


def lineage(run: Run) -> str:
    """Return where a run's own parameters came from, oldest first: ``inland_water, drawn``."""
    training = run.file.training
    return ", ".join(filter(None, (training.started_from, training.dataset)))

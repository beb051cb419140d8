"""What a recipe's TOML file says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.contract.boundary import parse, read_toml
from edge.contract.bundle import InputSize, Name
from edge.contract.errors import ConfigError
from train.data.dataset import DATASET, data_folder
from train.fit.plan import Choice, Network, Settings

SHIPPED = Path(__file__).parents[1] / "datasets"

TAKEN = frozenset({"ensemble", "otsu", "colour-and-row", "evaluation", "recipe"})
"""What a recipe calls its own files and predictors."""

Share = Annotated[float, Field(gt=0, lt=1)]
Baseline = Literal["otsu", "colour"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Drawn(_Part):
    """Synthetic scenes that the recipe draws for itself; as ``python -m train synth``."""

    count: Annotated[int, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)] = 0
    height: Annotated[int, Field(gt=0)] = 360
    width: Annotated[int, Field(gt=0)] = 640
    sequence: Annotated[int, Field(gt=0)] = 8


class Stage(Settings):
    """One step of transfer learning: a dataset, or scenes to draw, and how to train on it.

    What it leaves unsaid, the recipe's ``[settings]`` say. The last stage has neither dataset nor
    drawn: it is trained on the recipe's own.
    """

    name: Name
    dataset: str | None = None
    drawn: Drawn | None = None


class RecipeMember(Network):
    """One member: its network, its stages (all of them, unless named) and settings of its own.

    compared_with: another member's name, where this one is only there to be judged beside it.
    """

    name: Name
    stages: tuple[Name, ...] = ()
    compared_with: Name | None = None
    settings: Settings = Settings()


class EvaluationPlan(_Part):
    """How the members are judged.

    hold_out: each group in turn (leave-one-group-out), or the dataset's own test split;
    validation_share: of each other group, for the choice of the epoch and the weights.
    """

    hold_out: Literal["each-group", "test-split"] = "each-group"
    validation_share: Share = 0.25
    baselines: tuple[Baseline, ...] = ("otsu", "colour")


class Recipe(_Part):
    """A whole recipe."""

    schema_id: Literal["icecam.recipe/1"] = Field(alias="schema")
    name: Name
    dataset: str
    input: InputSize
    settings: Settings = Settings()
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]
    member: Annotated[tuple[RecipeMember, ...], Field(min_length=1)]
    evaluation: EvaluationPlan = EvaluationPlan()

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        for what, names in (
            ("stage", [stage.name for stage in self.stage]),
            ("member", [member.name for member in self.member]),
        ):
            repeated = [name for name, times in Counter(names).items() if times > 1]
            if repeated:
                message = f"expected each {what} once, repeated {', '.join(repeated)}"
                raise ValueError(message)
        self._check_stages()
        self._check_members()
        return self

    def _check_members(self) -> None:
        names = {member.name for member in self.member}
        taken = sorted(name for name in names if name.lower() in TAKEN or "." in name)
        if taken:
            message = f"member {taken[0]}: expected a name that the recipe's files do not have"
            raise ValueError(message)
        for member in self.member:
            if member.compared_with and member.compared_with not in names - {member.name}:
                message = f"member {member.name}: compared_with no other member"
                raise ValueError(message)
        if all(member.compared_with for member in self.member):
            message = "expected at least one member that is not there to be compared only"
            raise ValueError(message)

    def _check_stages(self) -> None:
        for stage in self.stage[:-1]:
            if (stage.dataset is None) == (stage.drawn is None):
                message = f"stage {stage.name}: expected either dataset or drawn"
                raise ValueError(message)
        last = self.stage[-1]
        if last.dataset is not None or last.drawn is not None:
            message = f"stage {last.name}: the last one is trained on the recipe's dataset"
            raise ValueError(message)
        known = [stage.name for stage in self.stage]
        for member in self.member:
            strange = sorted(set(member.stages) - set(known))
            if strange or (member.stages and last.name not in member.stages):
                message = (
                    f"member {member.name}: expected stages of {', '.join(known)}, "
                    f"{last.name} among them, found {', '.join(member.stages)}"
                )
                raise ValueError(message)

    def stages_of(self, member: RecipeMember) -> tuple[Stage, ...]:
        """Return a member's stages, in the recipe's order."""
        return tuple(s for s in self.stage if not member.stages or s.name in member.stages)

    def settings_of(self, member: RecipeMember, stage: Stage) -> Settings:
        """Return how a member is trained in a stage: member, stage, then recipe decide."""
        said: dict[str, Any] = {}
        for layer in (self.settings, stage, member.settings):
            said |= layer.model_dump(exclude_unset=True, include=set(Settings.model_fields))
        return Settings(**said)

    def choice_of(self, member: RecipeMember) -> Choice:
        """Return a member's network, and the frames it takes."""
        network = member.model_dump(include=set(Network.model_fields))
        return Choice(**network, **self.input.model_dump())


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigError that names the wrong key by its path."""
    return parse(Recipe, read_toml(path, what="a recipe"), where=str(path))


def find_dataset(name: str, *, recipe: Path, data: Path | None) -> Path:
    """Return the dataset.toml that a recipe means by a name.

    Looked for as NAME/dataset.toml and NAME.toml in the data folder (else the one that ICECAM_DATA
    names), then beside the recipe, then among those that come with icecam. Raises ConfigError that
    lists the places.
    """
    folders = [data or data_folder(), recipe.parent, SHIPPED]
    places = [place for f in folders for place in (f / name / DATASET, f / f"{name}.toml")]
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(
        f"{recipe}: no dataset {name!r}",
        expected="one of " + ", ".join(str(place) for place in places),
    )

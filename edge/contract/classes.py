"""Class maps: what each value of a mask means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

NOT_VALID = 255
"""The mask value of a pixel that was not judged: never counted, in any class."""

Role = Literal["ice", "water", "other"]
Byte = Annotated[int, Field(ge=0, le=255)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
"""An ISO 639 code such as en, fr or iu."""


class SurfaceClass(BaseModel):
    """One class of a mask: its index, its names, its colour (RGB) and what it counts as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: Annotated[int, Field(ge=0, lt=NOT_VALID)]
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
    role: Role
    colour: tuple[Byte, Byte, Byte]
    labels: dict[Language, Annotated[str, Field(min_length=1)]] = {}

    def label(self, language: Language = "en") -> str:
        """Return the name for people; falls back to the class's name, never to a translation."""
        return self.labels.get(language, self.name)


class Classes(RootModel[tuple[SurfaceClass, ...]]):
    """Classes of a mask, in the order of their indices, whatever their roles.

    Two are the same to a model when names, indices and roles agree (``signature``); colours and
    labels are for people.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _consistent(self) -> Classes:
        indices = [surface.index for surface in self.root]
        if indices != list(range(len(indices))):
            message = f"expected class indices 0, 1, 2, … in order, not {indices}"
            raise ValueError(message)
        if len(set(self.names)) != len(self.names):
            message = f"expected each class name once, not {', '.join(self.names)}"
            raise ValueError(message)
        return self

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.root)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, in index order."""
        return tuple(surface.name for surface in self.root)

    def indices(self, role: str) -> tuple[int, ...]:
        """Return the indices of all classes of a role."""
        return tuple(surface.index for surface in self.root if surface.role == role)

    @property
    def signature(self) -> tuple[tuple[str, str], ...]:
        """What must agree between models and data: (name, role) in index order."""
        return tuple((surface.name, surface.role) for surface in self.root)

    def describe(self) -> str:
        """Return one line for messages: ``0 water (water), 1 floe (ice)``."""
        return ", ".join(f"{s.index} {s.name} ({s.role})" for s in self.root)


class ClassMap(Classes):
    """What a station's masks mean: classes with at least one ice and one water.

    Masks that a member is only pretrained on may do without: those have ``Classes``.
    """

    @model_validator(mode="after")
    def _ice_and_water(self) -> ClassMap:
        for role in ("ice", "water"):
            if not self.indices(role):
                message = f"expected at least one class of role {role!r}"
                raise ValueError(message)
        return self

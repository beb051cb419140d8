"""What a fit is asked to do; an interrupted one goes on only under the same plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.frames import Size
    from train.data.dataset import Dataset, Item

MAX_SEED = 2**31 - 1
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
"""Lightning's words. bf16-mixed: products in bfloat16, parameters and sums in float32.

auto: the quickest of this machine.
"""
Part = Literal["encoder", "decoder", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
Side = Annotated[int, Field(gt=0)]


class _Chosen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Network(_Chosen):
    """Which network, and what it begins with.

    encoder: the architecture's usual one where empty; encoder_parameters: what the encoder starts
    with: none, a set that the library knows such as imagenet, or a .safetensors file.
    """

    architecture: str = "unet"
    encoder: str = ""
    options: dict[str, Any] = {}
    encoder_parameters: str = "none"


class Choice(Network):
    """A network and the frames it takes.

    height and width: of the frames in a bundle; max_anisotropy: how far they may be distorted.
    """

    height: Side = 224
    width: Side = 384
    max_anisotropy: Annotated[float, Field(ge=1)] = 1.2

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.height, self.width


class Settings(_Chosen):
    """How a member is trained on one dataset.

    class_balance: none, or median, which lets rare classes count for more; augmentation: a
    preset of ``train.data.augment``; crop: (height, width) of the random windows that training
    sees of a frame, all of it where None; frozen: parts that keep their parameters; patience:
    epochs without a better one after which training stops, 0 for never.
    """

    epochs: Annotated[int, Field(gt=0)] = 30
    batch_size: Annotated[int, Field(gt=0)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    precision: Precision = "auto"
    class_balance: Literal["none", "median"] = "none"
    augmentation: Literal["full", "light", "none"] = "light"
    crop: tuple[Side, Side] | None = None
    frozen: tuple[Part, ...] = ()
    patience: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0

    @model_validator(mode="after")
    def _something_learns(self) -> Settings:
        if len(set(self.frozen)) == len(PARTS):
            message = "expected at least one part that is not frozen"
            raise ValueError(message)
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Where to train, in Lightning's words; workers: processes that decode, 0 for none."""

    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    strategy: str = "auto"
    workers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the parameters.

    choice and settings with nothing left open; data: a digest of the dataset's images, labels
    and splits; start: sha256 of the parameters it starts from.
    """

    choice: Choice
    settings: Settings
    dataset: str
    data: str
    classes: str
    start: str | None = None

    def as_plain(self) -> dict[str, Any]:
        """Return the plan, flat, as plain values that survive a checkpoint unchanged."""
        return {
            **self.choice.model_dump(mode="json"),
            **self.settings.model_dump(mode="json"),
            "dataset": self.dataset,
            "data": self.data,
            "classes": self.classes,
            "start": self.start,
        }


def refuse_another_plan(where: str, plan: Plan, found: object) -> None:
    """Raise ConfigError that names what differs between a plan and the one ``found`` on disk."""
    kept = found if isinstance(found, dict) else {}
    differ = [
        f"{name} was {kept.get(name)!r}, now {value!r}"
        for name, value in plan.as_plain().items()
        if kept.get(name) != value
    ]
    if differ:
        raise ConfigError(
            f"{where}: an unfinished run with another plan ({'; '.join(differ)})",
            expected="the same plan, to go on with it, or a new folder",
        )


def quick_precision() -> Precision:
    """Return bf16-mixed where this machine multiplies bfloat16 in hardware, else 32-true."""
    import torch  # noqa: PLC0415 - a plan is made without it

    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    quick = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16-mixed" if quick else "32-true"


def digest(dataset: Dataset) -> str:
    """Return a short hash of which images are in which split, and of what their masks mean.

    It notices an image that came, went, or is in another split; another class map, or other mask
    values for a class or for what is ignored; and an image, mask or picture of floes whose file
    has another size in bytes. It opens none of them: a file changed without a change of its size
    is not noticed, nor is another homography.
    """
    lines = [f"{item.stem} {item.split} {_sizes_bytes(item)}" for item in dataset.items]
    lines.append(repr(dataset.class_map.signature))
    lines += [array.tobytes().hex() for array in (dataset.lookup, dataset.known)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _sizes_bytes(item: Item) -> list[int]:
    """Return the size of each file of an item, 0 where it is missing."""
    return [_size_bytes(path) for path in (item.image, item.mask, item.instances)]


def _size_bytes(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_size
    except OSError:
        return 0

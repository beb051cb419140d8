"""What a fit is asked to do; an interrupted one goes on only under the same plan."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.contract.frames import Size
    from train.data.dataset import Dataset

MAX_SEED = 2**31 - 1
Precision = Literal["32-true", "bf16-mixed"]
"""Lightning's words. bf16-mixed: products in bfloat16, parameters and sums in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the parameters.

    input_size: (height, width); options: of the architecture, complete;
    data: a digest of the dataset's images, groups and classes.
    """

    architecture: str
    encoder: str
    options: dict[str, Any]
    input_size: Size
    max_anisotropy: float
    epochs: int
    batch_size: int
    learning_rate: float
    precision: Precision
    seed: int
    dataset: str
    data: str

    def check(self) -> None:
        """Raise ConfigError where a number makes no sense."""
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", expected="more than 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}", expected=f"0 to {MAX_SEED}")

    def as_plain(self) -> dict[str, Any]:
        """Return the plan as plain values that survive a checkpoint unchanged."""
        return {**asdict(self), "input_size": list(self.input_size)}


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
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    quick = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16-mixed" if quick else "32-true"


def digest(dataset: Dataset) -> str:
    """Return a short hash of which images are in which split, and of the class map."""
    lines = [f"{item.stem} {item.split}" for item in dataset.items]
    lines.append(repr(dataset.class_map.signature))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

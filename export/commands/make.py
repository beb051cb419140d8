"""``python -m export make``: runs → bundle, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from edge.contract.errors import ConfigError
from export.frames import CHECKED_FRAMES, CHECKED_WITH_FLOES, choose_frames
from export.make import make as make_bundle
from export.metrics import read_metrics
from train.data.dataset import read_dataset
from train.ensembles import ENSEMBLE_ENDING, read_ensemble
from train.models.architectures import ARCHITECTURES
from train.runs import read_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from export.make import Made
    from train.runs import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the command line asks for (see ``export.make.make``)."""

    runs: tuple[Path, ...]
    out: Path
    data: Path | None
    frames: Path | None
    metrics: Path | None
    without: tuple[str, ...]
    float16: bool
    bundle_id: str
    serial: int | None


def make(wish: Wish) -> None:
    """Make a bundle and say what it is. Raises what ``export.make.make`` does."""
    console = Console(highlight=False, soft_wrap=True)
    dataset = None if wish.data is None else read_dataset(wish.data)
    measurable = dataset is not None and bool(dataset.of("test"))
    members, weights, temperatures = _members(wish.runs)
    held_out = None if wish.metrics is None else read_metrics(wish.metrics, members)
    if dataset is not None and not measurable and held_out is None:
        console.print(f"{dataset.name} holds no test group back: the bundle gets no metrics")
    made = make_bundle(
        members,
        wish.out,
        weights=weights,
        temperatures=temperatures,
        frames=choose_frames(dataset, wish.frames, most=_affordable(members)),
        without=wish.without,
        float16=wish.float16,
        held_out=held_out,
        held_out_on=dataset if measurable else None,
        bundle_id=wish.bundle_id,
        serial=wish.serial,
        say=console.print,
    )
    _tell(made, wish.out, console)


def _affordable(members: Sequence[Run]) -> int:
    """Return on how many frames to try a bundle of these members."""
    kinds = {ARCHITECTURES[run.architecture].kind for run in members}
    return CHECKED_WITH_FLOES if "floes" in kinds else CHECKED_FRAMES


def _tell(made: Made, out: Path, console: Console) -> None:
    manifest = made.manifest
    console.print(
        f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB): bundle {manifest.id}, serial "
        f"{manifest.serial}; ONNX Runtime and torch agree on {made.agreement:.3%} of the pixels of "
        f"{made.frames} frames"
    )
    for ensemble, verdict in made.float16.items():
        console.print(f"{ensemble} in float16: {verdict.describe()}")
    for member, count in made.unresolved.items():
        console.print(
            f"{member}: {count} overlaps of floes left unresolved on {made.frames} frames"
        )
    if manifest.metrics is not None:
        console.print(
            f"held out ({manifest.metrics.images} images of {manifest.metrics.dataset}): mIoU "
            f"{manifest.metrics.miou:.3f}"
        )
    if made.unseen:
        console.print(
            f"[yellow]warning:[/yellow] no golden frame shows {', '.join(made.unseen)}: give "
            "frames that do, or nobody notices on the station when such a class is lost"
        )


def _members(
    paths: Sequence[Path],
) -> tuple[Sequence[Run], Sequence[float] | None, Sequence[float] | None]:
    """Return runs, weights and temperatures, None for equal ones. Raises ConfigError."""
    files = [path for path in paths if path.suffix == ENSEMBLE_ENDING and not path.is_dir()]
    if not files:
        return [read_run(path) for path in paths], None, None
    if len(paths) > 1:
        raise ConfigError(
            f"{files[0]} beside {len(paths) - 1} more",
            expected="run folders, or one ensemble.toml alone",
            then="Nothing was written.",
        )
    ensemble = read_ensemble(files[0])
    return ensemble.runs, ensemble.weights, ensemble.temperatures

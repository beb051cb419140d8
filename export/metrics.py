"""Held-out figures for a manifest: measured here, or elsewhere by somebody honest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.contract.bundle import write_bundle
from edge.contract.errors import ConfigError
from train.runs import images_seen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge.contract.bundle import HeldOut
    from train.data.dataset import Dataset
    from train.runs import Run

MEASURED_HONESTLY = ("test", "cross-validation")


def read_metrics(path: Path, runs: Sequence[Run]) -> HeldOut:
    """Return the metrics of a file that ``train evaluate --json`` or a recipe wrote.

    Raises ConfigError where it holds several evaluations, was not measured on held-out images, or
    not with the classes of the runs.
    """
    from train.evaluate.record import read_evaluation  # noqa: PLC0415 - only where it is given

    found = read_evaluation(path)
    if found.split not in MEASURED_HONESTLY:
        raise ConfigError(
            f"{path}: {found.predictor} was measured on {found.dataset}/{found.split}",
            expected=f"{' or '.join(MEASURED_HONESTLY)}: images that no member has seen",
            then="Nothing was written.",
        )
    if found.class_map.signature != runs[0].class_map.signature:
        raise ConfigError(
            f"{path}: was measured with the classes {found.class_map.describe()}",
            expected=f"those of the runs: {runs[0].class_map.describe()}",
            then="Nothing was written.",
        )
    return found.held_out()


def is_new(dataset: Dataset, runs: Sequence[Run], say: Callable[[str], None]) -> bool:
    """Return whether no run has seen an image of the dataset's test split; else ``say`` so."""
    names = {item.stem for item in dataset.of("test")}
    for run in runs:
        known = names & images_seen(run) if run.file.training.dataset == dataset.name else set()
        if known:
            say(
                f"run {run.name!r} has seen {len(known)} of the {len(names)} test images of "
                f"{dataset.name}: the bundle gets no metrics"
            )
            return False
    return True


def measure(fields: Mapping[str, Any], files: Mapping[str, bytes], dataset: Dataset) -> HeldOut:
    """Return how a bundle of these fields and files does on the dataset's test split."""
    from train.evaluate.evaluation import evaluate  # noqa: PLC0415 - only where a dataset is given
    from train.predict import open_predictor  # noqa: PLC0415 - the same

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unmeasured.icecam"
        write_bundle(path, fields, files)
        with open_predictor(path) as predictor:
            return evaluate(predictor, dataset, split="test").held_out()

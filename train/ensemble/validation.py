"""Which images may weigh runs: the validation images of the split that the runs were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.contract.errors import ConfigError
from train.data.dataset import read_dataset
from train.data.splits import groups_of, hold_out, keep_all
from train.fit.plan import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from train.data.dataset import Dataset
    from train.runs import Run


def require_one_split(runs: Sequence[Run]) -> None:
    """Raise ConfigError where runs were trained on different images or splits of them."""
    first = runs[0]
    for run in runs[1:]:
        if run.file.training.data != first.file.training.data:
            raise ConfigError(
                f"runs of different data: {first.name!r} {_data_of(first)}; {run.name!r} "
                f"{_data_of(run)}",
                expected="runs of one dataset, split alike: else one member knows by heart what "
                "validates another",
                then="Nothing was written.",
            )


def dataset_of(
    runs: Sequence[Run], data: Path | None = None, *, group: str = "", validation_share: float
) -> Dataset:
    """Return the dataset that the runs were trained on, split as it was then.

    data: a dataset.toml or its folder, else the one that the runs name; group: held out, as fit
    was told; else every split is tried that fit can make. Where ``data`` or ``group`` is given and
    no split is that of the runs, it is taken as it stands: see ``was_trained_on``.

    Raises ConfigError where the runs name none, or what they name is gone or was changed, as far
    as ``train.fit.plan.digest`` notices: not where a file kept its size in bytes.
    """
    training = runs[0].file.training
    if data is None and not (training.source and training.data):
        raise ConfigError(
            f"run {runs[0].name!r} does not say where its dataset is",
            expected="--data DATASET",
            then="Nothing was written.",
        )
    dataset = _read(runs[0], data)
    if group:
        return hold_out(dataset, group, validation_share=validation_share)
    for split in _splits(dataset, training.held_out, validation_share):
        if digest(split) == training.data:
            return split
    if data is not None:
        return dataset
    raise ConfigError(
        f"{dataset.source}: not the images and splits that run {runs[0].name!r} was trained on",
        expected="the same; if fit was told a --validation-share, say it here too",
        then="Else name the dataset: --data DATASET, and --hold-out GROUP where fit was told one.",
    )


def was_trained_on(runs: Sequence[Run], dataset: Dataset) -> bool:
    """Return whether the runs were trained on this dataset, split like this (see ``digest``)."""
    return runs[0].file.training.data == digest(dataset)


def _read(run: Run, data: Path | None) -> Dataset:
    if data is not None:
        return read_dataset(data)
    try:
        return read_dataset(Path(run.file.training.source))
    except ConfigError as problem:
        raise ConfigError(
            f"run {run.name!r} was trained on {run.file.training.source}, which is not there as "
            f"it was: {problem.found}",
            expected="--data DATASET, where it is now",
            then="Nothing was written.",
        ) from None


def _splits(dataset: Dataset, held_out: str, share: float) -> Iterator[Dataset]:
    yield dataset
    if held_out in groups_of(dataset) and len(groups_of(dataset)) > 1:
        yield hold_out(dataset, held_out, validation_share=share)
    if not held_out:
        yield keep_all(dataset, validation_share=share)


def _data_of(run: Run) -> str:
    training = run.file.training
    said = f"{training.dataset} ({training.data or 'of unknown split'})"
    return f"{said} without {training.held_out}" if training.held_out else said

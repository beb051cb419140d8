"""Held-out figures of a manifest: only from images that no member has seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge.contract.bundle import HeldOut, open_bundle
from edge.contract.errors import ConfigError
from export.make import make
from export.metrics import is_new, read_metrics
from tests.export.small_runs import a_run, noise, one_thread, small_member
from tests.train.classes import classes_of
from tests.train.conftest import write_tiny
from train.data.dataset import read_dataset
from train.evaluate.boundary import BoundaryCounts
from train.evaluate.evaluation import Evaluation, evaluate
from train.evaluate.measure import IceFractions, ImageResult
from train.evaluate.record import write_json
from train.predict import open_predictor
from train.runs import Training

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.classes import Classes, ClassMap
    from train.data.dataset import Dataset
    from train.runs import Run


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three days, two frames each, 48x64."""
    return read_dataset(write_tiny(tmp_path / "tiny"))


def test_metrics_measured_elsewhere_go_into_the_manifest(
    tmp_path: Path, class_map: ClassMap
) -> None:
    held_out = HeldOut(
        dataset="floes/leave-one-day-out",
        images=15,
        miou=0.8,
        pixel_accuracy=0.9,
        iou={"other": None, "water": 0.7, "ice": 0.9},
        ice_fraction_mae=0.03,
    )
    run = a_run(tmp_path / "run", small_member("unet", class_map), class_map)
    with one_thread():
        make([run], tmp_path / "out.icecam", frames=noise(), held_out=held_out, float16=False)
    assert open_bundle(tmp_path / "out.icecam").manifest.metrics == held_out


def test_a_dataset_s_test_split_is_measured_through_the_bundle_s_own_graph(
    tmp_path: Path, dataset: Dataset
) -> None:
    member = small_member("unet", dataset.class_map)
    run = a_run(tmp_path / "run", member, dataset.class_map, max_anisotropy=1.5)
    out = tmp_path / "out.icecam"
    with one_thread():
        made = make([run], out, frames=noise(), held_out_on=dataset, float16=False)
        with open_predictor(run.folder) as in_torch:
            expected = evaluate(in_torch, dataset, split="test").held_out()
    metrics = made.manifest.metrics
    assert metrics is not None
    assert (metrics.images, metrics.dataset) == (2, expected.dataset)
    assert metrics.miou == pytest.approx(expected.miou, abs=1e-3)
    assert metrics.pixel_accuracy == pytest.approx(expected.pixel_accuracy, abs=1e-3)


def evaluated(folder: Path, class_map: Classes, split: str) -> Path:
    """A file of one evaluation: one image of 4 pixels, all right."""
    confusion = np.diag([1, 1, 2]).astype(np.int64)
    image = ImageResult(
        stem="a",
        group="g",
        confusion=confusion,
        boundary=BoundaryCounts(intersections=np.ones(3, np.int64), unions=np.ones(3, np.int64)),
        ice=IceFractions(true=0.5, predicted=0.5),
        ice_area=None,
        reliability=None,
    )
    found = Evaluation(
        predictor="ensemble",
        dataset="shore",
        split=split,  # type: ignore[arg-type]
        class_map=class_map,
        images=(image,),
    )
    write_json(folder / "figures.json", [found])
    return folder / "figures.json"


@pytest.mark.parametrize("split", ["test", "cross-validation"])
def test_metrics_of_held_out_images_are_taken(
    tmp_path: Path, runs: list[Run], class_map: ClassMap, split: str
) -> None:
    assert read_metrics(evaluated(tmp_path, class_map, split), runs).miou == 1


@pytest.mark.parametrize("split", ["train", "validation", "all"])
def test_metrics_of_images_that_members_have_seen_are_refused(
    tmp_path: Path, runs: list[Run], class_map: ClassMap, split: str
) -> None:
    with pytest.raises(ConfigError, match=f"was measured on shore/{split}"):
        read_metrics(evaluated(tmp_path, class_map, split), runs)


def test_metrics_of_other_classes_are_refused(tmp_path: Path, runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match="was measured with the classes 0 class_0"):
        read_metrics(evaluated(tmp_path, classes_of(3), "test"), runs)


def test_test_images_that_a_run_has_seen_give_no_metrics(
    tmp_path: Path, dataset: Dataset, class_map: ClassMap
) -> None:
    training = Training(dataset="tiny", seed=0, epochs=1)
    seen, unseen = (
        a_run(
            tmp_path / name,
            small_member("pspnet", class_map),
            class_map,
            name=name,
            training=training,
            metrics={"images": {"train": images, "validation": []}},
        )
        for name, images in (("seen", ["day-1_0", "day-3_1"]), ("unseen", ["day-1_0"]))
    )
    said: list[str] = []
    assert is_new(dataset, [unseen], said.append)
    assert said == []
    assert not is_new(dataset, [unseen, seen], said.append)
    assert said == [
        "run 'seen' has seen 1 of the 2 test images of tiny: the bundle gets no metrics"
    ]

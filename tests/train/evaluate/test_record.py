from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from edge.contract.errors import ConfigError
from train.evaluate.bootstrap import intervals
from train.evaluate.evaluation import evaluate, pool
from train.evaluate.record import (
    from_plain,
    read_evaluation,
    read_evaluations,
    to_plain,
    write_json,
)
from train.predict import Prediction

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels
    from train.data.dataset import Dataset
    from train.evaluate.evaluation import Evaluation

    Make = Callable[..., Evaluation]

GOOD, FAIR, POOR = [[90, 3], [6, 60]], [[70, 23], [16, 50]], [[40, 53], [36, 30]]


class Guesses:
    """Answers every frame with a drawn mask of its own, and how sure it is."""

    name = "guesses"

    def __init__(self, class_map: Classes) -> None:
        self.class_map = class_map

    def segment(self, pixels: Pixels) -> Prediction:
        rng = np.random.default_rng(int(pixels.sum()))
        mask = rng.integers(0, 3, (24, 32)).astype(np.uint8)
        return Prediction(mask=mask, confidence=rng.random((24, 32), dtype=np.float32))


def same(one: Evaluation, other: Evaluation) -> bool:
    return to_plain(one) == to_plain(other)


def test_folds_pooled_are_the_whole_evaluated_at_once(tiny_dataset: Dataset):
    predictor = Guesses(tiny_dataset.class_map)
    folds = [evaluate(predictor, tiny_dataset, split=s) for s in ("test", "train", "validation")]
    whole = evaluate(predictor, tiny_dataset, split="all")
    pooled = pool(folds)
    assert pooled.split == "cross-validation"
    assert pooled.groups == ("day-1", "day-2", "day-3")
    assert [image.stem for image in pooled.images] == [image.stem for image in whole.images]
    assert np.array_equal(pooled.confusion, whole.confusion)
    assert pooled.ece == pytest.approx(whole.ece)
    assert intervals(pooled) == intervals(whole)


def test_pooled_scores_weigh_pixels_not_folds(make_evaluation: Make):
    folds = [make_evaluation({"a": GOOD}), make_evaluation({"b": POOR, "c": FAIR})]
    weights = np.sum([GOOD, FAIR, POOR], axis=0).ravel()
    expected = jaccard_score([0, 0, 1, 1], [0, 1, 0, 1], sample_weight=weights, average="macro")
    assert pool(folds).scores.miou == pytest.approx(expected)
    assert pool(folds).held_out().dataset == "made/cross-validation"


def test_figures_that_cannot_be_written_are_a_named_error(make_evaluation: Make, tmp_path: Path):
    (tmp_path / "f.json").mkdir()
    with pytest.raises(
        ConfigError, match=r"f\.json: cannot be written \(Is a directory\).*of net "
    ):
        write_json(tmp_path / "f.json", [make_evaluation({"a": GOOD})])
    assert not list(tmp_path.glob(".f.json*"))


def test_an_image_in_two_folds_is_refused(make_evaluation: Make):
    folds = [make_evaluation({"a": GOOD, "b": POOR}), make_evaluation({"b": FAIR})]
    with pytest.raises(ConfigError, match=r"^b: in more than one of the evaluations"):
        pool(folds)


def test_folds_of_several_names_need_one_for_them_together(make_evaluation: Make):
    folds = [make_evaluation({s: GOOD}, predictor=f"net-{s}") for s in ("a", "b")]
    with pytest.raises(ConfigError, match="folds of net-a, net-b; expected one predictor, or"):
        pool(folds)
    assert pool(folds, predictor="net").predictor == "net"


def test_other_datasets_other_classes_and_nothing_are_not_pooled(make_evaluation: Make):
    first, lake = make_evaluation({"a": GOOD}), make_evaluation({"b": GOOD}, dataset="lake")
    with pytest.raises(ConfigError, match="measured on lake; expected made"):
        pool([first, lake])
    renamed = first.class_map.model_dump(mode="json")
    renamed[1]["name"] = "floe"
    other = dataclasses.replace(
        make_evaluation({"b": GOOD}), class_map=type(first.class_map).model_validate(renamed)
    )
    with pytest.raises(ConfigError, match="1 floe"):
        pool([first, other])
    with pytest.raises(ConfigError, match="no evaluation to pool"):
        pool([])


def test_what_was_written_is_read_back_to_the_last_count(tiny_dataset: Dataset, tmp_path: Path):
    found = evaluate(Guesses(tiny_dataset.class_map), tiny_dataset, split="all")
    write_json(tmp_path / "e.json", [found])
    read = read_evaluation(tmp_path / "e.json")
    assert same(read, found)
    assert np.array_equal(read.confusion, found.confusion)
    assert read.images[3].reliability is not None
    expected = found.images[3].reliability
    assert expected is not None
    assert np.array_equal(read.images[3].reliability.confidence, expected.confidence)
    assert read.class_map == found.class_map


def test_plain_values_and_back(make_evaluation: Make):
    found = make_evaluation({"a": GOOD, "b": FAIR})
    assert same(from_plain(to_plain(found), where="fold 1"), found)


def test_a_file_of_two_is_read_as_two_and_not_as_one(make_evaluation: Make, tmp_path: Path):
    path = tmp_path / "two.json"
    write_json(path, [make_evaluation({"a": GOOD}), make_evaluation({"a": FAIR}, predictor="x")])
    assert [e.predictor for e in read_evaluations(path)] == ["net", "x"]
    with pytest.raises(ConfigError, match="holds evaluations of net, x; expected one"):
        read_evaluation(path)


def broken(plain: dict[str, Any], how: str) -> None:
    image = plain["images"][0]
    match how:
        case "schema":
            plain["schema"] = "icecam.evaluation/9"
        case "negative":
            image["confusion"][0][1] = -4
        case "classes":
            image["confusion"] = [[1]]
        case "fraction":
            image["ice"]["true"] = 1.2
        case "bins":
            image["reliability"]["right"].pop()
        case "unknown":
            image["confusio"] = []
        case "empty":
            plain["images"] = []


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("schema", "[0].schema"),
        ("negative", "images[0].confusion[0][1]"),
        ("classes", "expected counts of 2 classes for a"),
        ("fraction", "images[0].ice.true"),
        ("bins", "images[0].reliability.right"),
        ("unknown", "did you mean 'confusion'"),
        ("empty", "images"),
    ],
)
def test_a_wrong_file_is_refused_by_the_field(
    make_evaluation: Make, tmp_path: Path, how: str, says: str
):
    plain = to_plain(make_evaluation({"a": GOOD}))
    broken(plain, how)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps([plain]))
    with pytest.raises(ConfigError) as caught:
        read_evaluations(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_no_file_and_no_json_are_refused_by_name(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_evaluation(tmp_path / "nowhere.json")
    (tmp_path / "torn.json").write_text("[{")
    with pytest.raises(ConfigError, match=r"torn\.json: not JSON"):
        read_evaluation(tmp_path / "torn.json")


def test_an_evaluation_of_no_valid_pixel_is_refused(make_evaluation: Make):
    images = make_evaluation({"a": GOOD}).images
    nothing = dataclasses.replace(images[0], confusion=np.zeros((2, 2), np.int64))
    with pytest.raises(ConfigError, match="no pixel of these masks is valid"):
        dataclasses.replace(make_evaluation({"a": GOOD}), images=(nothing,))

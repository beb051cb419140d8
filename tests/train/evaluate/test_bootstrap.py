from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import jaccard_score

from edge.contract.errors import ConfigError
from train.evaluate.bootstrap import Interval, intervals, paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from train.evaluate.evaluation import Evaluation

    Make = Callable[..., Evaluation]


def drawn(seed: int, count: int = 12) -> dict[str, list[list[int]]]:
    """Confusions of images that differ in size and in how well they went."""
    rng = np.random.default_rng(seed)
    return {f"image-{n}": rng.integers(30, 900, (2, 2)).tolist() for n in range(count)}


def miou_by_scikit_learn(confusions: np.ndarray) -> float:
    """Spread a sum of confusions out into pixels, weighted, and let scikit-learn score them."""
    return float(
        jaccard_score(
            [0, 0, 1, 1], [0, 1, 0, 1], sample_weight=confusions.sum(0).ravel(), average="macro"
        )
    )


def test_the_interval_of_the_pooled_miou_is_that_of_scipy(make_evaluation: Make):
    confusions = drawn(1)
    counts = np.array(list(confusions.values()))
    expected = bootstrap(
        (np.arange(len(counts)),),
        lambda chosen: miou_by_scikit_learn(counts[chosen]),
        n_resamples=800,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(9),
    ).confidence_interval
    found = intervals(make_evaluation(confusions), resamples=20_000).miou
    assert found is not None
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.1 * width)
    assert found.high == pytest.approx(expected.high, abs=0.1 * width)


def test_the_intervals_of_the_ice_fraction_are_those_of_scipy(make_evaluation: Make):
    evaluation = make_evaluation(drawn(2))
    found = intervals(evaluation, resamples=20_000)
    for values, interval in (
        (np.array(evaluation.errors), found.ice_fraction_bias),
        (np.abs(evaluation.errors), found.ice_fraction_mae),
        (2 * np.array(evaluation.errors), found.ice_area_fraction_bias),
        (2 * np.abs(evaluation.errors), found.ice_area_fraction_mae),
    ):
        expected = bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", rng=4
        ).confidence_interval
        width = expected.high - expected.low
        assert interval is not None
        assert interval.low == pytest.approx(expected.low, abs=0.04 * width)
        assert interval.high == pytest.approx(expected.high, abs=0.04 * width)


def test_two_images_by_hand(make_evaluation: Make):
    """A quarter of the resamples have only the one, a quarter only the other: both are ends."""
    evaluation = make_evaluation({"a": [[90, 0], [0, 90]], "b": [[90, 90], [0, 90]]})
    found = intervals(evaluation)
    assert found.iou == {"water": Interval(low=0.5, high=1), "ice": Interval(low=0.5, high=1)}
    assert found.miou == Interval(low=0.5, high=1)
    assert found.pixel_accuracy == Interval(low=pytest.approx(2 / 3), high=1)
    assert found.boundary_iou == found.iou
    assert found.boundary_miou == found.miou
    assert found.ice_fraction_bias == Interval(low=0, high=pytest.approx(1 / 3))


def test_one_image_has_no_interval(make_evaluation: Make):
    found = intervals(make_evaluation({"a": [[5, 1], [1, 5]]}))
    assert found.miou is None
    assert found.iou == {"water": None, "ice": None}
    assert found.ice_fraction_mae is None


def test_a_class_seen_in_one_image_is_judged_by_the_resamples_that_have_it(make_evaluation: Make):
    """Without warning: the resamples of "b" alone have no ice, and speak of water alone."""
    evaluation = make_evaluation({"a": [[60, 0], [30, 30]], "b": [[90, 0], [0, 0]]})
    found = intervals(evaluation)
    assert found.iou["ice"] == Interval(low=0.5, high=0.5)
    assert found.miou is not None
    assert found.miou.high == 1


def test_the_same_seed_gives_the_same_interval_and_another_another(make_evaluation: Make):
    evaluation = make_evaluation(drawn(3))
    assert intervals(evaluation) == intervals(evaluation)
    assert intervals(evaluation) != intervals(evaluation, seed=1)


def test_a_constant_lead_on_every_image_is_sure_though_each_miou_is_not(make_evaluation: Make):
    """Each image gives 0.1 more of its own: paired, that varies far less than either mIoU."""
    low = {f"i{n}": [[10 * n, 100 - 10 * n], [100 - 10 * n, 10 * n]] for n in range(1, 9)}
    high = {s: [[c[0][0] + 4, c[0][1] - 4], [c[1][0] - 4, c[1][1] + 4]] for s, c in low.items()}
    worse = make_evaluation(low, predictor="worse")
    better = make_evaluation(dict(reversed(high.items())), predictor="better")
    found = paired_difference(better, worse)
    assert (found.first, found.second) == ("better", "worse")
    assert found.value == pytest.approx(better.scores.miou - worse.scores.miou)
    assert found.interval is not None
    assert found.interval.low > 0
    alone = intervals(worse).miou
    assert alone is not None
    assert alone.high - alone.low > 4 * (found.interval.high - found.interval.low)


def test_a_predictor_is_no_better_than_itself(make_evaluation: Make):
    evaluation = make_evaluation(drawn(4))
    found = paired_difference(evaluation, evaluation)
    assert (found.value, found.interval) == (0, Interval(low=0, high=0))


def test_other_images_or_another_dataset_are_not_compared(make_evaluation: Make):
    first = make_evaluation({"a": [[5, 1], [1, 5]], "b": [[5, 1], [1, 5]]})
    with pytest.raises(ConfigError, match="b: measured for only one of net and other"):
        paired_difference(first, make_evaluation({"a": [[5, 1], [1, 5]]}, predictor="other"))
    with pytest.raises(ConfigError, match="net was measured on lake; expected made"):
        paired_difference(first, make_evaluation({"a": [[5, 1], [1, 5]]}, dataset="lake"))

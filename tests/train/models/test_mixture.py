from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from train.models.mixture import ice_probabilities, member_probabilities, mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def pixel(*logits: float) -> Tensor:
    """A frame of one pixel: ``[1, len(logits), 1, 1]``."""
    return torch.tensor(logits).reshape(1, -1, 1, 1)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def logs(*probabilities: float) -> Tensor:
    """Logits whose softmax these are."""
    return pixel(*(math.log(probability) for probability in probabilities))


def values(probabilities: Tensor) -> list[float]:
    return probabilities.flatten().tolist()


def test_members_of_surfaces_alone_are_the_weighted_mean_of_their_softmax():
    """Against scipy's softmax."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    mixed = mix(
        [first, second],
        kinds=["surfaces", "surfaces"],
        weights=[3.0, 1.0],
        temperatures=[2.0, 0.5],
        ice=[3],
        water=[1],
        classes=4,
    )
    expected = 0.75 * softmax(first.numpy() / 2, axis=1) + 0.25 * softmax(second / 0.5, axis=1)
    assert mixed.dtype == torch.float32
    assert np.allclose(mixed, expected, atol=1e-6)


def test_floes_share_out_the_rest_as_the_surfaces_say():
    """Sky 0.1, water 0.3, ice 0.6: a quarter of what is not ice is sky, three quarters water."""
    each = member_probabilities(
        [logs(0.1, 0.3, 0.6), pixel(logit(0.2))],
        kinds=["surfaces", "floes"],
        weights=[1.0, 1.0],
        temperatures=[1.0, 1.0],
        ice=[2],
        water=[1],
        classes=3,
    )
    assert values(each[0]) == pytest.approx([0.1, 0.3, 0.6], abs=1e-5)
    assert values(each[1]) == pytest.approx([0.2, 0.6, 0.2], abs=1e-5)


def test_what_is_shared_is_the_weighted_mean_of_the_surfaces():
    """Weights 3 to 1: not ice are 0.75 * 0.4 + 0.25 * 0.2 = 0.35 sky and 0.15 water."""
    (_, floes, _) = member_probabilities(
        [logs(0.4, 0.1, 0.5), pixel(logit(0.5)), logs(0.2, 0.3, 0.5)],
        kinds=["surfaces", "floes", "surfaces"],
        weights=[3.0, 9.0, 1.0],
        temperatures=[1.0, 1.0, 1.0],
        ice=[2],
        water=[1],
        classes=3,
    )
    assert values(floes) == pytest.approx([0.35, 0.15, 0.5], abs=1e-5)


def test_the_mean_of_surfaces_and_floes_worked_by_hand():
    """(2 * (0.1, 0.3, 0.6) + 1 * (0.2, 0.6, 0.2)) / 3."""
    mixed = mix(
        [pixel(2 * logit(0.2)), logs(0.1, 0.3, 0.6)],
        kinds=["floes", "surfaces"],
        weights=[1.0, 2.0],
        temperatures=[2.0, 1.0],
        ice=[2],
        water=[1],
        classes=3,
    )
    assert values(mixed) == pytest.approx([0.4 / 3, 1.2 / 3, 1.4 / 3], abs=1e-5)


def test_floes_alone_give_the_rest_to_the_first_water():
    mixed = mix(
        [pixel(logit(0.3))],
        kinds=["floes"],
        weights=[5.0],
        temperatures=[1.0],
        ice=[0],
        water=[2, 1],
        classes=4,
    )
    assert values(mixed) == pytest.approx([0.3, 0, 0.7, 0], abs=1e-6)


def test_without_water_the_rest_is_the_first_class_that_is_not_ice():
    mixed = mix(
        [pixel(logit(0.3))],
        kinds=["floes"],
        weights=[1.0],
        temperatures=[1.0],
        ice=[0],
        water=[],
        classes=3,
    )
    assert values(mixed) == pytest.approx([0.3, 0.7, 0], abs=1e-6)


def test_surfaces_that_are_sure_of_ice_leave_the_rest_to_water():
    """exp(-200) is 0 in float32: nothing is left to share by."""
    (_, floes) = member_probabilities(
        [pixel(-200, -200, 0), pixel(logit(0.25))],
        kinds=["surfaces", "floes"],
        weights=[1.0, 1.0],
        temperatures=[1.0, 1.0],
        ice=[2],
        water=[1],
        classes=3,
    )
    assert values(floes) == pytest.approx([0, 0.75, 0.25], abs=1e-6)


def test_ice_classes_that_sum_above_1_are_scaled_down():
    """0.9 and 0.6 become 0.6 and 0.4; 0.3 and 0.2 stay."""
    scaled = ice_probabilities(pixel(logit(0.9), logit(0.6)))
    assert values(scaled) == pytest.approx([0.6, 0.4], abs=1e-6)
    kept = ice_probabilities(pixel(logit(0.3), logit(0.2)))
    assert values(kept) == pytest.approx([0.3, 0.2], abs=1e-6)


def test_ice_classes_go_to_their_own_places():
    mixed = mix(
        [pixel(logit(0.5), logit(0.1)), logs(0.25, 0.25, 0.25, 0.25)],
        kinds=["floes", "surfaces"],
        weights=[1.0, 1e-9],
        temperatures=[1.0, 1.0],
        ice=[3, 0],
        water=[1],
        classes=4,
    )
    assert values(mixed) == pytest.approx([0.1, 0.2, 0.2, 0.5], abs=1e-5)


@given(
    kinds=st.lists(st.sampled_from(["surfaces", "floes"]), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
    ice=st.sampled_from([[0], [3], [1, 2], [3, 0]]),
)
def test_every_pixel_s_probabilities_sum_to_1(
    kinds: Sequence[str], seed: int, scale: float, ice: list[int]
):
    rng = np.random.default_rng(seed)
    outputs = [
        torch.from_numpy(rng.normal(0, scale, (2, 4 if kind == "surfaces" else len(ice), 3, 2)))
        for kind in kinds
    ]
    facts = {
        "kinds": kinds,
        "weights": rng.uniform(0.1, 9, len(kinds)).tolist(),
        "temperatures": rng.uniform(0.2, 5, len(kinds)).tolist(),
        "ice": ice,
        "water": [index for index in range(4) if index not in ice][:1],
        "classes": 4,
    }
    each = member_probabilities(outputs, **facts)
    for probabilities in (*each, mix(outputs, **facts)):
        assert probabilities.dtype == torch.float32
        assert probabilities.shape == (2, 4, 3, 2)
        assert bool((probabilities >= 0).all())
        assert torch.allclose(probabilities.sum(dim=1), torch.ones(()), atol=1e-5)
    for kind, output, temperature, found in zip(
        kinds, outputs, facts["temperatures"], each, strict=True
    ):
        if kind == "floes":
            told = expit(output.numpy() / temperature)
            told = told / np.maximum(told.sum(axis=1, keepdims=True), 1)
            assert np.allclose(found[:, ice], told, atol=1e-5)

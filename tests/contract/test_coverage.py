"""Coverage: small masks counted by hand, and any mask counted one pixel at a time."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edge.contract.classes import ClassMap
from edge.contract.coverage import concentration_tenths, measure, sigrid3_ct, weighted_spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

O, W, I, X = 0, 1, 2, 255  # noqa: E741 - other, water, ice, not valid: drawn as they lie

MASK = np.array([[O, W, W, X], [O, I, W, X], [I, I, I, X]], np.uint8)


@pytest.mark.protocol("fraction-1")
def test_ice_is_counted_against_ice_and_water_alone(class_map: ClassMap) -> None:
    found = measure(MASK, class_map)  # 4 ice, 3 water, 2 other, 3 not valid, of 12
    assert found.ice_pixel_fraction == pytest.approx(4 / 7)
    assert found.valid_pixel_fraction == pytest.approx(9 / 12)
    assert [(one.name, one.role, one.pixels) for one in found.classes] == [
        ("other", "other", 2),
        ("water", "water", 3),
        ("ice", "ice", 4),
    ]
    assert [one.pixel_fraction for one in found.classes] == pytest.approx([2 / 9, 3 / 9, 4 / 9])
    assert found.members == ()
    assert found.spread is None


@pytest.mark.protocol("fraction-1")
def test_only_pixels_inside_the_region_count_in_numerator_and_denominator(
    class_map: ClassMap,
) -> None:
    region = np.array([[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]], np.bool_)
    found = measure(MASK, class_map, region=region)  # water, ice, ice, and one not valid
    assert found.ice_pixel_fraction == pytest.approx(2 / 3)
    assert found.valid_pixel_fraction == pytest.approx(3 / 4)
    assert [one.pixels for one in found.classes] == [0, 1, 2]
    assert [one.pixel_fraction for one in found.classes] == pytest.approx([0, 1 / 3, 2 / 3])


def test_full_cover_inside_a_circle_is_one_not_the_circle_s_share_of_the_image(
    class_map: ClassMap,
) -> None:
    rows, columns = np.ogrid[:64, :64]
    circle = (rows - 31.5) ** 2 + (columns - 31.5) ** 2 < 20**2
    mask = np.where(circle, I, W).astype(np.uint8)
    assert measure(mask, class_map, region=circle).ice_pixel_fraction == 1.0


def test_an_empty_region_gives_nothing_known_and_no_valid_pixel(class_map: ClassMap) -> None:
    found = measure(MASK, class_map, region=np.zeros(MASK.shape, np.bool_))
    assert found.valid_pixel_fraction == 0.0
    assert found.ice_pixel_fraction is None
    assert [one.pixel_fraction for one in found.classes] == [None, None, None]


@pytest.mark.parametrize("value", [O, X])
def test_where_neither_ice_nor_water_is_seen_the_fraction_is_none_never_zero(
    class_map: ClassMap, value: int
) -> None:
    found = measure(np.full((3, 4), value, np.uint8), class_map)
    assert found.ice_pixel_fraction is None


def test_water_alone_is_zero_and_ice_alone_is_one(class_map: ClassMap) -> None:
    assert measure(np.full((3, 4), W, np.uint8), class_map).ice_pixel_fraction == 0.0
    assert measure(np.full((3, 4), I, np.uint8), class_map).ice_pixel_fraction == 1.0


def test_a_mask_all_not_valid_has_no_class_fractions(class_map: ClassMap) -> None:
    found = measure(np.full((2, 2), X, np.uint8), class_map)
    assert found.valid_pixel_fraction == 0.0
    assert [one.pixel_fraction for one in found.classes] == [None, None, None]


def test_several_classes_of_one_role_are_added_up() -> None:
    grey = {"colour": (9, 9, 9)}
    roles = [("lead", "water"), ("floe", "ice"), ("sea", "water"), ("brash", "ice")]
    four = ClassMap.model_validate(
        [{"index": i, "name": name, "role": role, **grey} for i, (name, role) in enumerate(roles)]
    )
    mask = np.array([[0, 1, 1, 1, 2, 2, 3, 255]], np.uint8)  # water 1 + 2, ice 3 + 1
    assert measure(mask, four).ice_pixel_fraction == pytest.approx(4 / 7)


def test_each_member_is_counted_from_its_own_mask_inside_the_same_region(
    class_map: ClassMap,
) -> None:
    members = np.array([[[I, W], [W, W]], [[I, I], [W, I]], [[O, I], [O, O]]], np.uint8)
    region = np.array([[1, 0], [1, 1]], np.bool_)
    found = measure(members[0], class_map, region=region, member_masks=members, weights=(1, 2, 5))
    assert found.members == (pytest.approx(1 / 3), pytest.approx(2 / 3), None)
    # Weights 1 and 2 on 1/3 and 2/3: mean 5/9, variance (1 (2/9)^2 + 2 (1/9)^2) / 3 = 2/81.
    assert found.spread == pytest.approx((2 / 81) ** 0.5)


@pytest.mark.protocol("fraction-3")
def test_spread_by_hand_is_the_weighted_population_deviation() -> None:
    # 0.2 and 0.6 with weights 3 and 1: mean 0.3, variance (3 * 0.01 + 1 * 0.09) / 4 = 0.03.
    assert weighted_spread([0.2, 0.6], [3, 1]) == pytest.approx(0.03**0.5)


@pytest.mark.protocol("fraction-3")
def test_members_that_agree_have_no_spread_and_one_member_has_none() -> None:
    assert weighted_spread([0.4, 0.4], [1, 2]) == pytest.approx(0, abs=1e-12)
    assert weighted_spread([0.4], [1]) is None
    assert weighted_spread([None, 0.4, None], [1, 1, 1]) is None
    assert weighted_spread([], []) is None


def test_a_fraction_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"zip|weight"):
        weighted_spread([0.1, 0.2], [1])


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0.01, 100)),
        min_size=2,
        max_size=8,
    )
)
def test_spread_equals_numpy_s_weighted_average_of_squares(
    pairs: list[tuple[float, float]],
) -> None:
    values, weights = np.array(pairs).T
    mean = np.average(values, weights=weights)
    expected = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    found = weighted_spread([x for x, _ in pairs], [w for _, w in pairs])
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.protocol("fraction-2")
# WMO: tenths, half up; SIGRID-3 (JCOMM TR 23) CT: 00 ice free, 01 open water (< 1/10),
# 10..90, 91 for more than 9/10 and less than 10/10, 92 for 10/10, 99 undetermined.
@pytest.mark.parametrize(
    ("fraction", "tenths", "code"),
    [
        (None, None, "99"),
        (0.0, 0, "00"),
        (1e-9, 0, "01"),
        (0.05, 0, "01"),
        (0.0999, 0, "01"),
        (0.1, 1, "10"),
        (0.1499, 1, "10"),
        (0.15, 2, "20"),
        (0.249, 2, "20"),
        (0.25, 3, "30"),
        (0.5, 5, "50"),
        (0.65, 7, "70"),
        (0.9, 9, "90"),
        (0.949, 9, "90"),
        (0.95, 10, "91"),
        (0.999, 10, "91"),
        (1.0, 10, "92"),
    ],
)
def test_tenths_and_sigrid3_codes_follow_the_tables(
    fraction: float | None, tenths: int | None, code: str
) -> None:
    assert concentration_tenths(fraction) == tenths
    assert sigrid3_ct(fraction) == code


@given(st.integers(0, 10**6))
def test_tenths_are_the_nearest_tenth_half_up_in_exact_arithmetic(millionths: int) -> None:
    exact = Fraction(millionths, 10**6)
    expected = 0 if exact < Fraction(1, 10) else (exact * 10 + Fraction(1, 2)).__floor__()
    assert concentration_tenths(millionths / 10**6) == expected


def test_a_region_of_another_shape_is_refused(class_map: ClassMap) -> None:
    with pytest.raises(ValueError, match=r"region \(4, 3\) and mask \(3, 4\)"):
        measure(MASK, class_map, region=np.ones((4, 3), np.bool_))


def test_member_masks_of_another_shape_are_refused_without_a_region_too(
    class_map: ClassMap,
) -> None:
    members = np.full((2, 4, 3), W, np.uint8)
    with pytest.raises(ValueError, match="differ"):
        measure(MASK, class_map, member_masks=members, weights=(1, 1))
    region = np.ones(MASK.shape, np.bool_)
    with pytest.raises(ValueError, match="differ"):
        measure(MASK, class_map, region=region, member_masks=members, weights=(1, 1))


@pytest.mark.parametrize("stray", [3, 100, 254])
def test_a_value_that_is_no_class_is_refused_by_name(class_map: ClassMap, stray: int) -> None:
    mask = MASK.copy()
    mask[1, 2] = stray
    with pytest.raises(ValueError, match=rf"\[{stray}\]"):
        measure(mask, class_map)
    with pytest.raises(ValueError, match=rf"\[{stray}\]"):
        measure(MASK, class_map, member_masks=mask[None], weights=(1,))


def test_a_stray_value_outside_the_region_is_not_looked_at(class_map: ClassMap) -> None:
    mask = np.array([[W, 77]], np.uint8)
    region = np.array([[True, False]])
    assert measure(mask, class_map, region=region).ice_pixel_fraction == 0.0


SHAPES = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


@given(
    SHAPES.flatmap(
        lambda shape: st.tuples(
            npst.arrays(np.uint8, shape, elements=st.sampled_from([O, W, I, X])),
            npst.arrays(np.bool_, shape),
        )
    )
)
def test_ice_pixel_fraction_is_what_counting_pixel_by_pixel_gives(
    class_map: ClassMap, drawn: tuple[Bytes, NDArray[np.bool_]]
) -> None:
    mask, region = drawn
    seen = [
        int(mask[row, column])
        for row in range(mask.shape[0])
        for column in range(mask.shape[1])
        if region[row, column]
    ]
    ice, water = seen.count(I), seen.count(W)
    expected = ice / (ice + water) if ice + water else None
    found = measure(mask, class_map, region=region)
    assert found.ice_pixel_fraction == expected
    assert found.valid_pixel_fraction == ((len(seen) - seen.count(X)) / len(seen) if seen else 0.0)
    assert [one.pixels for one in found.classes] == [seen.count(O), water, ice]

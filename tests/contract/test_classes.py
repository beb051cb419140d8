"""Class maps: what may stand in one, and when two mean the same to a model."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edge.contract.classes import ClassMap


def surface(index: int, name: str, role: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"index": index, "name": name, "role": role, "colour": (1, 2, 3), **more}


WATER_AND_ICE = [surface(0, "sea", "water"), surface(1, "floe", "ice")]


def test_names_and_indices_come_in_the_order_of_the_mask_s_values() -> None:
    found = ClassMap.model_validate(
        [surface(0, "lead", "water"), surface(1, "floe", "ice"), surface(2, "brash", "ice")]
    )
    assert len(found) == 3
    assert found.names == ("lead", "floe", "brash")
    assert found.indices("ice") == (1, 2)
    assert found.indices("water") == (0,)
    assert found.indices("other") == ()
    assert found.describe() == "0 lead (water), 1 floe (ice), 2 brash (ice)"


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([surface(1, "sea", "water"), surface(0, "floe", "ice")], r"0, 1, 2, … in order"),
        ([surface(0, "sea", "water"), surface(2, "floe", "ice")], r"0, 1, 2, … in order"),
        ([surface(0, "sea", "water"), surface(0, "floe", "ice")], r"0, 1, 2, … in order"),
        ([surface(0, "sea", "water"), surface(1, "sea", "ice")], "each class name once"),
        ([surface(0, "sea", "water")], "role 'ice'"),
        ([surface(0, "floe", "ice"), surface(1, "land", "other")], "role 'water'"),
        ([], "role 'ice'"),
    ],
    ids=["swapped", "hole", "twice", "same name", "no ice", "no water", "empty"],
)
def test_a_map_that_would_count_wrongly_is_refused(
    classes: list[dict[str, Any]], expected: str
) -> None:
    with pytest.raises(ValidationError, match=expected):
        ClassMap.model_validate(classes)


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"index": 255},
        {"name": "Sea ice"},
        {"name": ""},
        {"name": "x" * 33},
        {"role": "snow"},
        {"colour": (0, 0, 256)},
        {"colour": (0, 0)},
        {"labels": {"German": "Eis"}},
        {"labels": {"en": ""}},
        {"shade": 1},
    ],
    ids=str,
)
def test_a_class_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClassMap.model_validate([{**WATER_AND_ICE[0], **change}, WATER_AND_ICE[1]])


def test_a_label_that_was_not_given_is_the_class_s_name_never_another_language() -> None:
    labels = {"en": "floe", "fr": "floe de glace"}
    found = ClassMap.model_validate(
        [WATER_AND_ICE[0], surface(1, "floe_big", "ice", labels=labels)]
    )
    assert found.root[1].label() == "floe"
    assert found.root[1].label("fr") == "floe de glace"
    assert found.root[1].label("iu") == "floe_big"


def test_colours_and_labels_do_not_make_two_maps_differ_but_roles_names_and_order_do() -> None:
    first = ClassMap.model_validate(WATER_AND_ICE)
    painted = [{**one, "colour": (9, 9, 9), "labels": {"en": "x"}} for one in WATER_AND_ICE]
    assert ClassMap.model_validate(painted).signature == first.signature
    for other in (
        [surface(0, "sea", "water"), surface(1, "ice", "ice")],
        [surface(0, "sea", "ice"), surface(1, "floe", "water")],
        [surface(0, "floe", "ice"), surface(1, "sea", "water")],
        [*WATER_AND_ICE, surface(2, "land", "other")],
    ):
        assert ClassMap.model_validate(other).signature != first.signature


def test_a_map_comes_back_equal_from_its_json() -> None:
    first = ClassMap.model_validate(WATER_AND_ICE)
    assert ClassMap.model_validate_json(first.model_dump_json()) == first

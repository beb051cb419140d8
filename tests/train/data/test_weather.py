from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from train.data import weather
from train.data.weather import (
    Fog,
    Glare,
    Jpeg,
    LightField,
    MotionBlur,
    Searchlight,
    Snow,
    Tone,
    Weather,
)

SIZE = (90, 160)
ALL = [Tone(), LightField(), Searchlight(), Glare(), Fog(), Snow(), MotionBlur(), Jpeg()]
NAMES = [type(change).__name__ for change in ALL]


def plain(value: int) -> torch.Tensor:
    return torch.full((3, *SIZE), value, dtype=torch.uint8)


def changed(change: Weather, frame: torch.Tensor, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return change.change(frame).numpy()


@pytest.mark.parametrize("change", ALL, ids=NAMES)
def test_weather_changes_the_frame_alone_and_leaves_its_input(change: Weather):
    torch.manual_seed(1)
    frame = tv_tensors.Image(torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.randint(0, 3, SIZE, dtype=torch.uint8))
    frame_before, mask_before = frame.clone(), mask.clone()
    first, first_mask = change(frame, mask)
    second, _ = change(frame, mask)
    assert (first.dtype, first.shape, type(first)) == (torch.uint8, frame.shape, tv_tensors.Image)
    assert torch.equal(frame, frame_before)
    assert torch.equal(first_mask, mask_before)
    assert not torch.equal(first, frame)
    assert not torch.equal(first, second)


def test_tone_is_a_power_of_the_level_times_a_gain_of_red_and_blue(
    monkeypatch: pytest.MonkeyPatch,
):
    """Every draw at its upper end: gamma exp(0.4), red and blue times exp(0.1)."""
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(1.0))
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]
    found = Tone(gamma=0.4, balance=0.1).change(levels)[:, 0].numpy().astype(int)
    for channel, gain in enumerate((math.exp(0.1), 1.0, math.exp(0.1))):
        expected = [min(255, 255 * (v / 255) ** math.exp(0.4) * gain) for v in range(256)]
        assert np.abs(found[channel] - expected).max() <= 0.51


def test_no_gamma_and_no_balance_change_nothing():
    frame = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]
    assert torch.equal(Tone(gamma=0, balance=0).change(frame), frame)


def test_a_light_field_stays_in_its_gain_and_is_smooth():
    darkest, brightest = 255, 0
    for seed in range(30):
        lit = changed(LightField((0.25, 2.0)), plain(100), seed)[0].astype(int)
        darkest, brightest = min(darkest, lit.min()), max(brightest, lit.max())
        assert np.abs(np.diff(lit, axis=0)).max() < 20
        assert np.abs(np.diff(lit, axis=1)).max() < 20
    assert 25 <= darkest < 40
    assert 150 < brightest <= 200


def test_a_searchlight_falls_off_from_one_place_to_the_ambient_light():
    change = Searchlight(ambient=(0.1, 0.1), beam=(1.0, 1.0), radius=(0.1, 0.1))
    for seed in range(20):
        lit = changed(change, plain(200), seed)[0].astype(int)
        row, column = np.unravel_index(lit.argmax(), lit.shape)
        assert 200 <= lit[row, column] <= 220
        assert lit.min() == 20
        for ray in (
            lit[row, column:],
            lit[row, column::-1],
            lit[row:, column],
            lit[row::-1, column],
        ):
            assert (np.diff(ray) <= 0).all()


@pytest.mark.parametrize(("level", "darkest"), [(5, 5), (16, 8), (250, 8)])
def test_no_searchlight_makes_the_night_black(level: int, darkest: int):
    """Ambient light of a hundredth would leave 0, 0 and 3."""
    change = Searchlight(ambient=(0.01, 0.01), radius=(0.1, 0.1))
    assert min(changed(change, plain(level), seed).min() for seed in range(10)) == darkest


def test_glare_only_adds_light():
    frame = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    for seed in range(20):
        assert (changed(Glare(), frame, seed) >= frame.numpy()).all()
    assert changed(Glare(strength=(1.2, 1.2)), plain(30), 3).max() == 255


def test_fog_thickens_upwards_and_the_nearest_row_is_clear():
    frame = plain(0)
    frame[:, :, ::2] = 255
    total = np.zeros(SIZE[0])
    for seed in range(20):
        seen = changed(Fog(), frame, seed)[0].astype(int)
        contrast = (seen[:, ::2] - seen[:, 1::2]).mean(axis=1)
        assert contrast[-1] == 255
        assert contrast[0] < 235
        total += contrast
    assert (np.diff(total) > 0).all()


def test_flakes_are_as_many_as_asked_for():
    """5 of a thousand of 20 x 14400 pixels: 1440, give or take five deviations of 38."""
    change = Snow(flakes=(5, 5), length=(1, 1))
    found = sum((changed(change, plain(0), seed)[0] > 0).sum() for seed in range(20))
    assert abs(found - 1440) < 190


def test_a_point_that_moves_is_a_line_of_the_same_light():
    point = plain(0)
    point[:, 40, 70] = 255
    for seed in range(20):
        line = changed(MotionBlur((5, 5)), point, seed)[0]
        rows, columns = np.nonzero(line)
        assert set(line[rows, columns]) == {51}
        assert len(rows) == 5
        assert (rows.mean(), columns.mean()) == (40, 70)
        across = np.linalg.svd(np.stack((rows - 40, columns - 70)).astype(float))[1][1]
        assert across < 1.2


def test_a_line_is_centred_whatever_its_direction():
    for angle in np.linspace(0, math.pi, 13):
        path = weather._line(9, float(angle))
        assert {(-row, -column) for row, column in path} == set(path)


def test_the_border_is_mirrored_not_darkened():
    assert (changed(MotionBlur(), plain(77), 0) == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (3, 50)])
@pytest.mark.parametrize("change", ALL, ids=NAMES)
def test_a_frame_smaller_than_what_moves_over_it_keeps_its_size(
    change: Weather, size: tuple[int, int]
):
    frame = torch.full((3, *size), 77, dtype=torch.uint8)
    for seed in range(20):
        assert changed(change, frame, seed).shape == (3, *size)


def test_a_tiny_frame_of_one_level_keeps_its_level_under_motion():
    """The mean along the path holds as many samples as the path has."""
    frame = torch.full((3, 2, 3), 77, dtype=torch.uint8)
    for seed in range(20):
        assert (changed(MotionBlur((9, 9)), frame, seed) == 77).all()


def test_a_path_longer_than_the_frame_is_held_to_its_last_column(
    monkeypatch: pytest.MonkeyPatch,
):
    """Columns 0, 30, 60 moved by -4..4 along the row, held to -2..2, mirrored: 2 1 0 1 2 1 0.

    Column 0: 60 60 60 30 0 30 60 60 60; column 1: thrice 30, 0, 30, 60, thrice 30;
    column 2: thrice 0, 30, 60, 30, thrice 0.
    """
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.0))
    row = torch.tensor([0, 30, 60], dtype=torch.uint8).expand(3, 1, 3)
    blurred = MotionBlur((9, 9)).change(row)
    expected = [round(420 / 9), round(270 / 9), round(120 / 9)]
    assert blurred.tolist() == [[expected]] * 3


def test_a_good_jpeg_is_close_and_a_bad_one_further_off():
    colours = torch.tensor([[200.0], [100.0], [30.0]])
    ramp = (colours * torch.linspace(0.2, 1, SIZE[1])).to(torch.uint8)
    frame = ramp[:, None].expand(3, *SIZE).contiguous()
    good, bad = (
        np.abs(changed(Jpeg((q, q)), frame, 0).astype(int) - frame.numpy()).mean() for q in (95, 5)
    )
    assert good < 1.5
    assert bad > 2 * good

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from edge.contract.errors import ConfigError
from train.data.augment import PRESETS, Strength, augment, augmentation

if TYPE_CHECKING:
    from torch import Tensor

NO_FLOES = torch.zeros((0, 0), dtype=torch.int32)
GEOMETRY = v2.Compose(augmentation("full").transforms[:2])


def squares() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A frame painted with its own mask, and a floe in each square."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    floes = np.kron(np.arange(1, 49).reshape(6, 8), np.ones((16, 16))).astype(np.int32) * mask
    frame = np.repeat(mask[None] * 200, 3, axis=0)
    return torch.from_numpy(frame), torch.from_numpy(mask), torch.from_numpy(floes)


@pytest.mark.parametrize("change", [GEOMETRY, augmentation("light")], ids=["full", "light"])
def test_the_mask_follows_the_frame(change: v2.Transform):
    """A frame painted with its own mask stays so, up to the blur of bilinear edges."""
    moved = 0
    for seed in range(40):
        frame, labels, _ = augment(change, *squares(), seed=seed)
        valid = labels != 255
        light = frame.float().mean(0)[valid]
        middle = (light.max() + light.min()) / 2
        assert ((light > middle) == labels[valid].bool()).float().mean() > 0.93, seed
        assert valid.float().mean() > 0.2
        moved += not torch.equal(labels, squares()[1])
    assert moved > 20


@pytest.mark.parametrize("strength", PRESETS)
def test_floes_follow_the_mask_pixel_by_pixel(strength: Strength):
    for seed in range(30):
        _, mask, floes = augment(augmentation(strength), *squares(), seed=seed)
        assert torch.equal(floes > 0, mask == 1)
        assert set(floes.unique().tolist()) <= set(squares()[2].unique().tolist())


def test_what_comes_in_is_black_not_valid_and_no_floe():
    white, surface, floe = (
        torch.full((3, 64, 96), 255, dtype=torch.uint8),
        torch.ones((64, 96), dtype=torch.uint8),
        torch.full((64, 96), 7, dtype=torch.int32),
    )
    outside = 0
    for seed in range(30):
        frame, mask, floes = augment(GEOMETRY, white, surface, floe, seed=seed)
        came_in = mask == 255
        outside += int(came_in.sum())
        assert set(mask.unique().tolist()) <= {1, 255}
        assert torch.equal(floes == 0, came_in)
        assert frame[:, came_in].float().mean().nan_to_num(0) < 40
        assert frame[:, ~came_in].float().mean() > 240
    assert outside > 1000


@pytest.mark.parametrize("strength", PRESETS)
def test_augmentation_keeps_shapes_and_leaves_its_inputs_alone(strength: Strength):
    torch.manual_seed(0)
    frame = torch.randint(0, 256, (3, 33, 47), dtype=torch.uint8)
    mask = torch.randint(0, 3, (33, 47), dtype=torch.uint8)
    before = frame.clone(), mask.clone()
    for seed in range(40):
        changed = augment(augmentation(strength), frame, mask, NO_FLOES, seed=seed)
        assert [part.dtype for part in changed] == [torch.uint8, torch.uint8, torch.int32]
        assert [part.shape for part in changed] == [frame.shape, mask.shape, (0, 0)]
        assert {type(part) for part in changed} == {torch.Tensor}
    assert torch.equal(frame, before[0])
    assert torch.equal(mask, before[1])


def test_a_seed_gives_the_same_pixels_whatever_the_generators_stood_at():
    change = augmentation("full")
    torch.manual_seed(1)
    first = [augment(change, *squares(), seed=seed) for seed in range(12)]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - the legacy generator that libraries share
    random.seed(2)
    again = [augment(change, *squares(), seed=seed) for seed in range(12)]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({one[0].numpy().tobytes() for one in first}) == 12


def test_the_callers_generators_are_left_as_they_were():
    torch.manual_seed(5)
    states = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002 - the same
    for seed in range(12):
        augment(augmentation("full"), *squares(), seed=seed)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == states[1]  # noqa: NPY002 - the same
    assert random.getstate() == states[2]


def test_no_augmentation_changes_nothing():
    for changed, given in zip(
        augment(augmentation("none"), *squares(), seed=3), squares(), strict=True
    ):
        assert torch.equal(changed, given)


def test_frames_are_bgr_outside_and_rgb_for_the_library():
    """Rec. 601: a pure blue of 255 is a grey of 0.114 * 255 = 29."""
    blue = torch.zeros((3, 8, 8), dtype=torch.uint8)
    blue[0] = 255
    seen: list[Tensor] = []

    class Spy(v2.Transform):
        def transform(self, inpt: Tensor, _params: dict[str, object]) -> Tensor:
            seen.append(inpt)
            return inpt

    mask = torch.zeros((8, 8), dtype=torch.uint8)
    same, _, _ = augment(Spy(), blue, mask, NO_FLOES, seed=0)
    assert torch.equal(same, blue)
    assert [type(part) for part in seen] == [tv_tensors.Image, tv_tensors.Mask]
    assert seen[0][:, 0, 0].tolist() == [0, 0, 255]
    grey, _, _ = augment(v2.RandomGrayscale(1.0), blue, mask, NO_FLOES, seed=0)
    assert grey.unique().tolist() == [29]


def test_full_strength_reaches_night_and_overexposure():
    frame = torch.full((3, 48, 64), 120, dtype=torch.uint8)
    mask = torch.ones((48, 64), dtype=torch.uint8)
    means = []
    for seed in range(120):
        changed, labels, _ = augment(augmentation("full"), frame, mask, NO_FLOES, seed=seed)
        means.append(float(changed[:, labels == 1].float().mean()))
    assert min(means) < 40
    assert max(means) > 180
    assert 70 < float(np.median(means)) < 150


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ConfigError, match="'heavy'; expected one of full, light, none"):
        augmentation("heavy")  # type: ignore[arg-type]

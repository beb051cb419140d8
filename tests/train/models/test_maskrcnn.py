from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import clip_boxes_to_image, masks_to_boxes

from edge.contract.boundary import parse
from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from train.models.architectures import build_member
from train.models.maskrcnn import (
    ENCODERS,
    LOGIT_LIMIT,
    InstanceMember,
    Instances,
    MaskRcnnOptions,
    paste,
)
from train.models.members import IMAGENET_MEAN, IMAGENET_STD, MemberFacts

SMALL: dict[str, object] = {"width": 16, "box_width": 32}
OUTER = torch.tensor([-0.5, -0.5, 0.5, 0.5])


def member_of(
    encoder: str = "mobilenet_v3_small", *, ice: tuple[int, ...] = (2,), **options: object
) -> InstanceMember:
    """A small one with random parameters; classes: 0 sky, 1 water, the rest as told."""
    torch.manual_seed(0)
    facts = MemberFacts(
        architecture="maskrcnn",
        encoder=encoder,
        options=parse(MaskRcnnOptions, SMALL | options, where="test"),
        classes=4,
        ice=ice,
        water=(1,),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return InstanceMember(facts)


def squares(height: int, width: int, *, step: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bright squares of ice on dark water: frames, masks and floes of one frame."""
    floes = np.zeros((height, width), np.int32)
    corners = [
        (top, left)
        for top in range(1, height - side, step)
        for left in range(1, width - side, step)
    ]
    for number, (top, left) in enumerate(corners, 1):
        floes[top : top + side, left : left + side] = number
    mask = np.where(floes > 0, 2, 1).astype(np.uint8)
    frame = np.where(floes > 0, 230, 40).astype(np.float32)
    frames = torch.from_numpy(frame).expand(1, 3, height, width).clone()
    return frames, torch.from_numpy(mask)[None], torch.from_numpy(floes)[None]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_s_pyramid_halves_from_4_px_on(encoder: str):
    member = member_of(encoder).eval()
    with torch.inference_mode():
        levels = member.network.backbone(torch.zeros(1, 3, 64, 128))
    assert [tuple(level.shape[2:]) for level in levels.values()] == [
        (16, 32),
        (8, 16),
        (4, 8),
        (2, 4),
        (1, 2),
    ]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_parts_hold_all_parameters_once(encoder: str):
    member = member_of(encoder)
    parts = [id(one) for part in member.parts().values() for one in part.parameters()]
    assert sorted(parts) == sorted(id(one) for one in member.parameters())
    assert sum(one.numel() for one in member.parameters()) == member.parameter_count
    assert set(member.parts()) == {"encoder", "decoder", "head"}


def test_the_head_is_what_depends_on_the_number_of_ice_classes():
    """The parameters whose shapes differ between one ice class and two.

    Of its own it has the step to 28 cells, which torchvision makes part of the mask's predictor.
    """
    one, two = (member_of(ice=ice) for ice in ((2,), (2, 3)))
    shapes = {name: parameter.shape for name, parameter in two.named_parameters()}
    differ = {id(p) for name, p in one.named_parameters() if p.shape != shapes[name]}
    head = {id(p): name for name, p in one.parts()["head"].named_parameters()}
    rest = {name for known, name in head.items() if known not in differ}
    assert differ <= set(head)
    assert rest == {"1.conv5_mask.weight", "1.conv5_mask.bias"}


def test_the_table_builds_it_for_the_ice_of_a_class_map():
    names = [("water", "water"), ("floe", "ice"), ("shore", "other"), ("fast_ice", "ice")]
    rows = [
        {"index": index, "name": name, "role": role, "colour": (0, 0, 0)}
        for index, (name, role) in enumerate(names)
    ]
    class_map = parse(Classes, rows, where="test")
    member = build_member("maskrcnn", class_map=class_map, options=SMALL).eval()
    assert (member.kind, member.encoder, member.classes) == ("floes", "resnet18", 4)
    assert member(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(ConfigError, match="none of which is ice"):
        build_member("maskrcnn", class_map=parse(Classes, rows[:1], where="test"))


def test_an_unknown_encoder_is_refused_with_the_list():
    with pytest.raises(ConfigError, match=r"unknown encoder 'vgg16' of maskrcnn; .*resnet18, "):
        member_of("vgg16")


def test_fewer_proposals_than_detections_are_refused():
    with pytest.raises(ConfigError, match="at least 500 proposals, one for each of detections"):
        member_of(proposals=[1000, 499])


def test_frames_are_taken_at_multiples_of_32_alone():
    member = member_of().eval()
    with pytest.raises(ConfigError, match=r"100x96 .*; expected multiples of 32"):
        member(torch.zeros(1, 3, 100, 96))
    with pytest.raises(ConfigError, match="multiples of 32"):
        member.loss(*(part[..., :50] for part in squares(64, 64, step=20, side=10)))


def test_the_encoder_sees_normalised_rgb_at_the_frame_s_size():
    """torchvision's mean and deviation, over the channels turned round."""
    seen: list[Tensor] = []
    member = member_of().eval()
    member.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    frame = torch.randint(0, 256, (1, 3, 64, 96)).float()
    member(frame)
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(seen[0], (frame.flip(1) - mean) / std, atol=1e-5)


def test_targets_are_the_floes_boxes_and_masks():
    """Boxes as torchvision's masks_to_boxes has them, out to the pixels' outer edges."""
    mask = torch.ones(64, 96, dtype=torch.uint8)
    floes = torch.zeros(64, 96, dtype=torch.int32)
    rng = np.random.default_rng(0)
    parts, count = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(64, 96)), 3) > 0.05)
    floes[:] = torch.from_numpy(parts * 10)
    mask[floes > 0] = 2
    target = member_of(least_area_px=1).targets(mask, floes)
    expected = torch.stack([floes == 10 * number for number in range(1, count + 1)])
    assert torch.equal(target["masks"], expected)
    assert torch.equal(target["boxes"], masks_to_boxes(expected) + OUTER)
    assert target["labels"].tolist() == [1] * count


def test_a_floe_is_its_ice_and_of_the_class_that_most_of_it_has():
    mask = torch.tensor([[3, 3, 2, 255, 1, 2]], dtype=torch.uint8)
    floes = torch.tensor([[5, 5, 5, 5, 5, 6]])
    target = member_of(ice=(2, 3), least_area_px=1).targets(mask, floes)
    assert target["labels"].tolist() == [2, 1]
    assert target["masks"].tolist() == [[[True] * 3 + [False] * 3], [[False] * 5 + [True]]]
    assert target["boxes"].tolist() == [[-0.5, -0.5, 2.5, 0.5], [4.5, -0.5, 5.5, 0.5]]


def test_floes_below_the_least_area_are_left_out():
    """Of 1, 2 and 3 pixels."""
    floes = torch.tensor([[1, 0, 2, 2, 0, 3, 3, 3]])
    mask = torch.where(floes > 0, 2, 1).to(torch.uint8)
    target = member_of(least_area_px=2).targets(mask, floes)
    assert target["masks"].sum(dim=(1, 2)).tolist() == [2, 3]


def learnt_from(member: InstanceMember, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, int]:
    """How often each of 450 floes is drawn in one step, and how many boxes are drawn in all."""
    frames, masks, floes = squares(192, 256, step=10, side=6)
    floes[floes > 450] = 0
    heads, drawn = member.network.roi_heads, []
    choose = heads.select_training_samples
    monkeypatch.setattr(
        heads, "select_training_samples", lambda *given: drawn.append(choose(*given)) or drawn[-1]
    )
    member.loss(frames, masks, floes).backward()
    assert all(bool(torch.isfinite(one.grad).all()) for one in member.parameters())
    _, (floe,), (label,), _ = drawn[0]
    return torch.bincount(floe[label > 0], minlength=450), len(label)


def test_a_step_draws_512_boxes_a_quarter_of_them_on_floes(monkeypatch: pytest.MonkeyPatch):
    """As torchvision and Detectron2 do: of 450 floes a step learns 128 at most."""
    times, boxes = learnt_from(member_of(), monkeypatch)
    assert (len(times), boxes) == (450, 512)
    assert times.sum() == 128


def test_with_more_boxes_to_a_step_all_of_450_floes_are_learnt_from(
    monkeypatch: pytest.MonkeyPatch,
):
    times, _ = learnt_from(member_of(boxes_learnt=8000), monkeypatch)
    assert len(times) == 450
    assert bool((times > 0).all())


def test_more_than_400_floes_are_told():
    member = member_of(least_score=0.0).eval()
    (found,) = member.instances(squares(192, 256, step=10, side=6)[0])
    assert 400 < len(found.boxes) <= 500
    assert found.boxes.shape == (len(found.scores), 4)
    assert found.masks.shape == (len(found.scores), 28, 28)
    assert set(found.labels.tolist()) == {2}


def test_no_more_floes_are_told_than_the_options_allow():
    (found,) = member_of(least_score=0.0, detections=7).eval().instances(torch.rand(1, 3, 64, 96))
    assert len(found.boxes) == 7


@pytest.mark.parametrize("value", [1, 255])
def test_a_frame_without_floes_can_be_learnt_from(value: int):
    frames, masks, floes = squares(64, 96, step=30, side=12)
    masks[0], floes[0] = value, 0
    loss = member_of().loss(frames, masks, floes)
    loss.backward()
    assert loss.ndim == 0
    assert bool(torch.isfinite(loss))


def test_pixels_that_are_not_valid_cannot_change_the_loss():
    """Nor can the floes on them."""
    frames, masks, floes = squares(64, 96, step=30, side=12)
    masks[:, :, 48:] = 255
    others, elsewhere = frames.clone(), floes.clone()
    others[..., 48:] = torch.rand(1, 3, 64, 48) * 255
    elsewhere[..., 48:] = 99
    member = member_of()
    member.parts()["encoder"].eval()
    losses = []
    for pixels, numbers in ((frames, floes), (others, elsewhere)):
        torch.manual_seed(1)
        losses.append(member.loss(pixels, masks, numbers).item())
    assert losses[0] == losses[1]


def test_a_frozen_part_leaves_a_loss_and_the_loss_leaves_detections():
    """Whatever torchvision's own heads think of training, loss learns and forward finds."""
    frames, masks, floes = squares(64, 96, step=30, side=12)
    member = member_of().eval()
    assert member.loss(frames, masks, floes).item() > 0
    assert member(frames).shape == (1, 1, 64, 96)


def test_fifty_steps_on_three_squares_halve_the_loss_and_find_the_squares():
    """Found as at a station: by what the batch norms have seen so far, not by the batch."""
    frames, masks, floes = squares(64, 96, step=30, side=20)
    floes[floes > 3] = 0
    masks[:] = torch.where(floes > 0, 2, 1)
    frames = torch.where(floes[:, None] > 0, 230.0, 40.0).expand(1, 3, 64, 96)
    member = member_of()
    optimiser = torch.optim.AdamW(member.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = member.loss(frames, masks, floes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    ice, truth = member.eval().decide(frames) == 2, masks == 2
    assert float((ice & truth).sum() / (ice | truth).sum()) > 0.6


def told(member: InstanceMember, found: Instances, frames: Tensor) -> Tensor:
    """Return the member's probabilities where its network finds these floes, and no others."""
    rest = {"boxes": found.boxes, "scores": found.scores, "masks": found.masks[:, None]}
    channels = [member.ice.index(int(label)) for label in found.labels]
    labels = torch.tensor(channels, dtype=torch.long) + 1
    member.network.roi_heads.forward = lambda *_: ([rest | {"labels": labels}], {})
    return torch.sigmoid(member.eval()(frames))


def drawn(*, count: int, labels: tuple[int, ...]) -> Instances:
    """Some floes with smooth masks, at places that are no whole pixels."""
    torch.manual_seed(2)
    low = torch.rand(count, 2) * torch.tensor([60.0, 30.0])
    side = 6 + torch.rand(count, 2) * 25
    smooth = torch.nn.functional.interpolate(torch.rand(count, 1, 5, 5), (28, 28), mode="bicubic")
    return Instances(
        boxes=torch.cat([low, low + side], dim=1),
        scores=torch.rand(count),
        labels=torch.tensor(
            [labels[place % len(labels)] for place in range(count)], dtype=torch.long
        ),
        masks=smooth[:, 0].clamp(0, 1),
    )


def sampled(found: Instances, size: tuple[int, int]) -> Tensor:
    """Paste by torch's grid_sample, as Detectron2 does: ``[N, H, W]``."""
    x1, y1, x2, y2 = (side[:, None] for side in found.boxes.unbind(1))
    rows = (torch.arange(size[0]) - y1) / (y2 - y1) * 2 - 1
    columns = (torch.arange(size[1]) - x1) / (x2 - x1) * 2 - 1
    count, height, width = len(found.boxes), *size
    grid = torch.stack(
        [
            columns[:, None, :].expand(count, height, width),
            rows[:, :, None].expand(count, height, width),
        ],
        dim=-1,
    )
    masks = found.masks[:, None]
    return torch.nn.functional.grid_sample(masks, grid, align_corners=False)[:, 0]


def test_pasted_masks_are_those_of_torch_s_grid_sample():
    found = drawn(count=12, labels=(2,))
    pasted = paste(found.masks, found.boxes, (64, 96))
    assert torch.allclose(pasted, sampled(found, (64, 96)), atol=1e-4)


def test_pasted_masks_lie_where_torchvision_pastes_them():
    """Its boxes are cut to whole pixels, so to a pixel: mean places differ by less than one."""
    found = drawn(count=6, labels=(2,))
    theirs = paste_masks_in_image(found.masks[:, None], found.boxes, (64, 96))[:, 0]
    for ours, other in zip(paste(found.masks, found.boxes, (64, 96)), theirs, strict=True):
        centres = [ndimage.center_of_mass(one.numpy()) for one in (ours, other)]
        assert np.abs(np.subtract(*centres)).max() < 1
        assert float(torch.corrcoef(torch.stack([ours, other]).flatten(1))[0, 1]) > 0.85


@pytest.mark.parametrize("radius", [3, 6, 20])
def test_a_floe_known_perfectly_is_pasted_to_its_own_pixels(radius: int):
    """Through torchvision's own learning targets; its own pasting keeps an IoU of 0.7 to 0.95."""
    rows, columns = np.mgrid[:96, :96]
    floe = torch.from_numpy(np.hypot((rows - 47.3) / 0.8, columns - 46.6) < radius)
    floes = torch.where(floe, 1, 0)
    target = member_of().targets(torch.where(floe, 2, 1).to(torch.uint8), floes)
    first = torch.zeros(1, dtype=torch.long)
    cells = project_masks_on_boxes(target["masks"], target["boxes"], first, 28)
    back = paste(cells, target["boxes"], (96, 96))[0] > 0.5
    assert float((back & floe).sum() / (back | floe).sum()) > 0.99


@pytest.mark.parametrize("side", [10, 100])
@pytest.mark.parametrize("left", ["first", "between", "last"])
@pytest.mark.parametrize("top", ["first", "between", "last"])
def test_a_floe_that_the_frame_cuts_off_is_ice_up_to_the_frame_s_edge(
    side: int, top: str, left: str
):
    """Known perfectly, at a score of 0.6, its box clipped as torchvision clips what it finds.

    At its other edges up to two pixels of it fall short of 0.5 by that score.
    """
    size = (128, 160)
    first, start = (
        {"first": 0, "between": 17, "last": length - side}[place]
        for place, length in zip((top, left), size, strict=True)
    )
    floe = torch.zeros(size, dtype=torch.bool)
    floe[first : first + side, start : start + side] = True
    member = member_of()
    target = member.targets(torch.where(floe, 2, 1).to(torch.uint8), floe.long())
    boxes = clip_boxes_to_image(target["boxes"], size)
    found = Instances(
        boxes=boxes,
        scores=torch.tensor([0.6]),
        labels=torch.tensor([2]),
        masks=project_masks_on_boxes(target["masks"], boxes, torch.zeros(1, dtype=torch.long), 28),
    )
    ice = told(member, found, torch.zeros(1, 3, *size))[0, 0].numpy() > 0.5
    sure = ndimage.binary_erosion(floe.numpy(), np.ones((5, 5)), border_value=1)
    assert np.all(ice[sure])
    assert not np.any(ice[~floe.numpy()])


def test_a_floe_one_pixel_from_the_edge_does_not_reach_it():
    boxes = torch.tensor([[0.5, 0.5, 10.5, 10.5], [85.5, 53.5, 94.5, 62.5]])
    near, far = paste(torch.ones(2, 28, 28), boxes, (64, 96))
    assert not bool((near > 0.5)[0].any())
    assert not bool((near > 0.5)[:, 0].any())
    assert not bool((far > 0.5)[63].any())
    assert not bool((far > 0.5)[:, 95].any())
    assert int((near > 0.5).sum()) == 100
    assert int((far > 0.5).sum()) == 81


def test_the_probability_is_the_best_score_times_mask_of_the_class():
    """Of 70 floes of two classes that overlap, so that they are pasted in several turns."""
    member = member_of(ice=(2, 3))
    found = drawn(count=70, labels=(2, 3))
    probabilities = told(member, found, torch.zeros(1, 3, 64, 96))
    each = sampled(found, (64, 96)) * found.scores[:, None, None]
    least = 1 / (1 + np.exp(LOGIT_LIMIT))
    for channel, label in enumerate((2, 3)):
        best = each[found.labels == label].amax(dim=0).clamp(least, 1 - least)
        assert torch.allclose(probabilities[0, channel], best, atol=1e-4)


def test_a_floe_seen_many_times_is_no_surer_than_seen_once():
    one = drawn(count=1, labels=(2,))
    many = Instances(
        boxes=one.boxes.repeat(300, 1),
        scores=one.scores.repeat(300),
        labels=one.labels.repeat(300),
        masks=one.masks.repeat(300, 1, 1),
    )
    frames = torch.zeros(1, 3, 64, 96)
    assert torch.equal(told(member_of(), many, frames), told(member_of(), one, frames))


def test_where_no_floe_is_the_logit_is_at_its_limit():
    member = member_of()
    none = drawn(count=0, labels=(2,))
    frames = torch.zeros(1, 3, 64, 96)
    probabilities = told(member, none, frames)
    assert member(frames).dtype == torch.float32
    assert torch.allclose(member(frames), torch.full((1, 1, 64, 96), -6.0), atol=1e-3)
    assert float(probabilities.max()) == pytest.approx(1 / (1 + np.exp(6)), rel=1e-3)


def test_it_decides_for_ice_where_ice_is_likelier_than_not_and_else_for_water():
    member = member_of()
    found = drawn(count=1, labels=(2,))
    frames = torch.zeros(1, 3, 64, 96)
    likely = told(member, found, frames)[0, 0] > 0.5
    assert torch.equal(member.decide(frames)[0], torch.where(likely, 2, 1))


def test_places_are_exact_under_half_precision():
    """bfloat16 would round a box beyond pixel 256 to whole steps of 2 px."""
    member = member_of(least_score=0.0, detections=50).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = member.instances(torch.rand(1, 3, 64, 512) * 255)
    assert found.boxes.dtype == torch.float32
    beyond = found.boxes[found.boxes > 256]
    assert len(beyond) > 0
    assert not torch.equal(beyond, beyond.to(torch.bfloat16).float())
    frames, masks, floes = squares(64, 96, step=30, side=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert member.loss(frames, masks, floes).dtype == torch.float32

"""Mask R-CNN in static shapes, so that it is a member of the one graph like any other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from edge.contract.errors import ConfigError
from train.models.maskrcnn import LOGIT_LIMIT, paste

if TYPE_CHECKING:
    from torchvision.models.detection import MaskRCNN
    from torchvision.ops import MultiScaleRoIAlign

    from edge.contract.frames import Size
    from train.models.maskrcnn import InstanceMember
    from train.models.members import Kind

SUPPRESSION_STEPS = 64
"""Chains of overlapping boxes met at 384x640: up to 16 long in well-separated scores, with hundreds
of floes on drawn and real frames (tests.bench.static_maskrcnn); between 33 and 48 on one frame of a
network that had hardly learnt. What is longer is counted."""

_POOLED_LEVELS = 4
_FIRST_LEVEL = 2
"""Of the pyramid, as arXiv 1612.03144 counts: a cell of level k is 2^k px."""
_LEVEL_ROUNDING = 1e-6
_CHUNK = 32
_TINY_AREA = 1e-9
_LEAST_SIDE = 1e-2
_MOST_STRETCH = math.log(1000 / 16)
"""torchvision's own, of a detection in px and of a box's logarithm."""
_DROPPED = -1.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """The floes of one frame in ``D`` places, best first; most places may be empty.

    boxes: float32 ``[D, 4]``, x1, y1, x2, y2 in pixels, 0 at the centre of the first pixel;
    scores: float32 ``[D]``, 0..1, 0 where the place is empty (its box, label and mask then mean
    nothing); labels: int64 ``[D]``, indices of the class map; masks: float32 ``[D, 28, 28]``,
    probability 0..1 in cells of the box (see ``train.models.maskrcnn.paste``).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class StaticMaskRcnn(nn.Module):
    """A trained Mask R-CNN member for frames of one size, without data-dependent shapes.

    It computes what torchvision does, in other shapes: always the same number of proposals and of
    detections, of which those that torchvision would drop have a score of 0; suppression of
    overlaps in a fixed number of steps (``greedy_suppression``); features of boxes from one stack
    of the pyramid's levels. It stands in for the member where a graph is exported.
    """

    kind: ClassVar[Kind] = "floes"
    limits: Tensor
    scales: Tensor
    level_sides: Tensor
    candidate_labels: Tensor

    def __init__(
        self, member: InstanceMember, size: Size, *, suppression_steps: int = SUPPRESSION_STEPS
    ) -> None:
        """Share the member's parameters, put it in eval mode and fix the size (height, width).

        Raises ConfigError for a size that the member cannot take and for no suppression_steps.
        """
        super().__init__()
        member.check_size(size)
        if suppression_steps < 1:
            raise ConfigError(f"{suppression_steps} suppression steps", expected="at least 1")
        self.member = member
        self.size = size
        self.suppression_steps = suppression_steps
        self._least = torch.sigmoid(torch.tensor(-LOGIT_LIMIT)).item()
        self.eval()
        self._fix()

    def _fix(self) -> None:
        """Keep what depends on the size alone: anchors, levels and labels."""
        network, (height, width) = self.member.network, self.size
        anchors = _anchors(network, self.member.mean.new_zeros(1, 3, height, width))
        most, kept = self.member.options.proposals
        self._kept = min(kept, sum(min(most, len(level)) for level in anchors))
        levels = range(_FIRST_LEVEL, _FIRST_LEVEL + _POOLED_LEVELS)
        fixed = {
            "limits": [width, height, width, height],
            "scales": [0.5**level for level in levels],
            "level_sides": [_least_side(network.roi_heads.box_roi_pool, k) for k in levels[1:]],
        }
        for name, values in fixed.items():
            self._keep(name, torch.tensor(values, dtype=torch.float32))
        for level, boxes in enumerate(anchors):
            self._keep(f"anchors_{level}", boxes)
        self._keep("candidate_labels", torch.tensor(self.member.ice).repeat_interleave(self._kept))

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(self.member.mean.device), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logit of the probability of each ice class, float32 ``[1, K, H, W]``.

        frames: BGR float32 ``[1, 3, H, W]``, 0..255. The same as the member's own forward, where
        ``find`` has nothing unresolved. Raises ConfigError for frames of another shape.
        """
        found, _ = self.find(frames)
        return self.logits(found)

    def logits(self, found: Detections) -> Tensor:
        """Return what ``forward`` does, from the floes that were found."""
        weights = [found.scores * (found.labels == index).float() for index in self.member.ice]
        best = [self._pasted(found.masks * each[:, None, None], found.boxes) for each in weights]
        return torch.logit(torch.stack(best)[None], eps=self._least)

    def find(self, frames: Tensor) -> tuple[Detections, Tensor]:
        """Return the floes of a frame, and how many decisions were unresolved, a float32 scalar.

        frames: as for ``forward``. Unresolved are the boxes, of proposals and of detections, of
        which one more step of suppression would decide otherwise: 0 says that the floes are
        exactly those of greedy suppression. Raises ConfigError for frames of another shape.
        """
        self._check_shape(frames)
        levels = list(self.member.network.backbone(self.member.normalised(frames)).values())
        proposals, valid, undecided = self._proposals(levels)
        pyramid = _stacked(levels[:_POOLED_LEVELS])
        boxes, scores, labels, unresolved = self._detections(pyramid, proposals, valid)
        masks = self._masks(pyramid, boxes, labels)
        found = Detections(boxes=boxes, scores=scores, labels=labels, masks=masks)
        return found, undecided + unresolved

    def _check_shape(self, frames: Tensor) -> None:
        expected = (1, 3, *self.size)
        if tuple(frames.shape) != expected:
            raise ConfigError(f"frames of {list(frames.shape)}", expected=f"{list(expected)}")

    def _proposals(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best boxes ``[P, 4]``, which are proposals ``[P]`` (1 or 0), unresolved."""
        rpn, most = self.member.network.rpn, self.member.options.proposals[0]
        found = [
            self._best_of_level(level, objectness[0], codes[0], most)
            for level, (objectness, codes) in enumerate(zip(*rpn.head(levels), strict=True))
        ]
        longest = max(len(scores) for _, scores in found)
        boxes = torch.stack([_lengthened(one, longest) for one, _ in found])
        scores = torch.stack([_lengthened(one[:, None], longest)[:, 0] for _, one in found])
        keep, unresolved = greedy_suppression(
            boxes,
            (_shortest(boxes) >= rpn.min_size).float(),
            threshold=rpn.nms_thresh,
            steps=self.suppression_steps,
        )
        scores = torch.where(keep > 0, torch.sigmoid(scores), _DROPPED).flatten()
        best, at = _best_first(scores, self._kept)
        return boxes.flatten(0, 1).index_select(0, at), (best >= 0).float(), unresolved

    def _best_of_level(
        self, level: int, objectness: Tensor, codes: Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        """Return the best boxes of a level ``[n, 4]`` and their logits ``[n]``, best first."""
        logits = objectness.permute(1, 2, 0).flatten()
        best, at = logits.topk(min(most, len(logits)))
        of_anchors = codes.reshape(-1, 4, *codes.shape[1:]).permute(2, 3, 0, 1).reshape(-1, 4)
        anchors = self.get_buffer(f"anchors_{level}").index_select(0, at)
        coder = self.member.network.rpn.box_coder
        boxes = _decoded(of_anchors.index_select(0, at), anchors, coder.weights)
        return self._clipped(boxes), best

    def _detections(
        self, pyramid: Tensor, proposals: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes ``[D, 4]``, scores ``[D]``, labels ``[D]`` and how many are unresolved."""
        heads = self.member.network.roi_heads
        features = self._pooled(heads.box_roi_pool, pyramid, proposals)
        logits, codes = heads.box_predictor(heads.box_head(features))
        scores = torch.softmax(logits, dim=1)[:, 1:] * valid[:, None]
        codes = codes.reshape(len(proposals), -1, 4)[:, 1:]
        boxes = self._clipped(_decoded(codes, proposals[:, None], heads.box_coder.weights))
        told = (scores > heads.score_thresh) & (_shortest(boxes) >= _LEAST_SIDE)
        scores = torch.where(told, scores, _DROPPED)
        scores, order = _best_first(scores.T, len(proposals))
        boxes = torch.stack(
            [boxes[:, channel].index_select(0, at) for channel, at in enumerate(order)]
        )
        keep, unresolved = greedy_suppression(
            boxes,
            (scores > 0).float(),
            threshold=heads.nms_thresh,
            steps=self.suppression_steps,
        )
        scores = torch.where(keep > 0, scores, _DROPPED).flatten()
        best, at = _best_first(scores, min(self.member.options.detections, len(scores)))
        labels = self.candidate_labels.index_select(0, at)
        return boxes.flatten(0, 1).index_select(0, at), best.clamp(min=0), labels, unresolved

    def _masks(self, pyramid: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Return each box's mask of its own class, ``[D, 28, 28]``."""
        heads = self.member.network.roi_heads
        features = self._pooled(heads.mask_roi_pool, pyramid, boxes)
        masks = torch.sigmoid(heads.mask_predictor(heads.mask_head(features)))
        own = [
            masks[:, channel] * (labels == index).float()[:, None, None]
            for channel, index in enumerate(self.member.ice, 1)
        ]
        return reduce(torch.add, own)

    def _pooled(self, pool: MultiScaleRoIAlign, pyramid: Tensor, boxes: Tensor) -> Tensor:
        """Return the features of each box, from the level of its size: ``[N, C, h, w]``."""
        sides = boxes[:, 2:] - boxes[:, :2]
        side = (sides[:, 0] * sides[:, 1]).sqrt()
        level = (side[:, None] >= self.level_sides).float().sum(dim=1)
        scale = self.scales.index_select(0, level.long())
        places = torch.cat([level[:, None], boxes * scale[:, None]], dim=1)
        pooled: Tensor = roi_align(
            pyramid, places, pool.output_size, sampling_ratio=pool.sampling_ratio
        )
        return pooled

    def _clipped(self, boxes: Tensor) -> Tensor:
        return torch.minimum(boxes.clamp(min=0), self.limits)

    def _pasted(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Return the greatest of the masks at each pixel, ``[H, W]``.

        In chunks: 500 masks of 384x640 pixels as float would be half a gigabyte.
        """
        chunks = zip(torch.split(masks, _CHUNK), torch.split(boxes, _CHUNK), strict=True)
        return reduce(torch.maximum, (paste(*chunk, self.size).amax(dim=0) for chunk in chunks))


def greedy_suppression(
    boxes: Tensor, valid: Tensor, *, threshold: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Return which boxes greedy suppression keeps, 1 or 0 ``[G, n]``, and how many are unresolved.

    boxes: float32 ``[G, n, 4]``, best first, each of G groups for itself; valid: ``[G, n]``, 1 or
    0; threshold: the intersection over union above which the worse box goes.

    Greedily, a box stays if it is valid and no better box that stays overlaps it. Each step
    decides so of all boxes at once, by what stayed in the step before; at first all do. After k
    steps every box is right whose longest chain of overlapping better boxes is at most k long, so
    that what no further step changes is greedy suppression. Unresolved (a scalar) is how many
    boxes one more step would change.
    """
    overlap = torch.triu((_intersection_over_union(boxes) > threshold).float(), diagonal=1)
    valid = valid[:, None]
    keep = valid
    for _ in range(steps):
        keep = _one_step(keep, valid, overlap)
    unresolved = (_one_step(keep, valid, overlap) - keep).abs().sum()
    return keep[:, 0], unresolved


def _one_step(keep: Tensor, valid: Tensor, overlap: Tensor) -> Tensor:
    """Return ``[G, 1, n]``: 1 for valid boxes that no kept better box overlaps.

    The product counts these; all that matters is whether it is 0.
    """
    return torch.relu(valid - keep @ overlap)


def _intersection_over_union(boxes: Tensor) -> Tensor:
    """Return ``[G, n, n]``; rounded as torchvision's ``nms``, so that decisions are the same."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    area = ((x2 - x1) * (y2 - y1)).clamp(min=_TINY_AREA)
    width = _shared(x1, x2)
    shared = width * _shared(y1, y2)
    return shared / (area[:, :, None] + area[:, None] - shared)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """Return the length that two boxes of a group share along an axis, ``[G, n, n]``."""
    ends = torch.minimum(high[:, :, None], high[:, None])
    return (ends - torch.maximum(low[:, :, None], low[:, None])).clamp(min=0)


def _decoded(codes: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return boxes ``[..., 4]`` moved and stretched by codes (arXiv 1311.2524, appendix C).

    Rounded as torchvision's ``BoxCoder``.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + 0.5 * sides
    move, stretch = codes[..., :2] / weights[0], codes[..., 2:] / weights[2]
    centres = move * sides + centres
    half = 0.5 * (torch.exp(stretch.clamp(max=_MOST_STRETCH)) * sides)
    return torch.cat([centres - half, centres + half], dim=-1)


def _shortest(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1)


def _best_first(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the best of the last axis and their places; of equal scores the first comes first.

    So says ONNX of TopK, which torch's topk becomes; torch's own may take equal ones in any order.
    """
    if torch.compiler.is_exporting():
        best, at = scores.topk(count)
        return best, at
    scores, order = scores.sort(descending=True, stable=True)
    return scores[..., :count], order[..., :count]


def _lengthened(rows: Tensor, count: int) -> Tensor:
    """Return ``[count, ...]``, zeros after the rows: boxes without area, which are not valid."""
    return nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _stacked(levels: list[Tensor]) -> Tensor:
    """Return the levels of a pyramid as one batch ``[L, C, h, w]`` of the first one's size.

    Their own last rows and columns are repeated: torchvision's RoIAlign reads these for points
    between the last cell's centre and the map's edge.
    """
    height, width = levels[0].shape[-2:]
    return torch.cat(
        [
            nn.functional.pad(
                level,
                (0, width - level.shape[-1], 0, height - level.shape[-2]),
                mode="replicate",
            )
            for level in levels
        ]
    )


def _anchors(network: MaskRCNN, images: Tensor) -> list[Tensor]:
    """Return the anchors of each level of the pyramid of such images, ``[n, 4]``."""
    with torch.no_grad():
        levels = list(network.backbone(images).values())
    generator = network.rpn.anchor_generator
    size = (images.shape[-2], images.shape[-1])
    (anchors,) = generator(ImageList(images, [size]), levels)
    counts = [
        level.shape[-2] * level.shape[-1] * each
        for level, each in zip(levels, generator.num_anchors_per_location(), strict=True)
    ]
    return list(anchors.split(counts))


def _least_side(pool: MultiScaleRoIAlign, level: int) -> float:
    """Return from what root of its area in px on a box belongs to a level or a coarser one.

    Torchvision's rule: floor(level0 + log2(side / side0) + 1e-6).
    """
    above: float = level - pool.canonical_level - _LEVEL_ROUNDING
    return float(pool.canonical_scale) * math.pow(2, above)

"""Mask R-CNN as a member: it sees floes, and says of each pixel how likely it is ice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edge.contract.classes import NOT_VALID
from edge.contract.errors import ConfigError
from train.models.members import Channels, Kind, Member, MemberFacts, Options
from train.models.mixture import member_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchvision.models.detection import MaskRCNN

    from edge.contract.frames import Size

ENCODERS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
)
LOGIT_LIMIT = 6.0
"""Where no floe was found the probability of ice is not 0 but 1 in 404: floes are missed oftener
than the scores say, and one temperature has to serve both ends."""

_COARSEST = 32
_LEVELS = ("0", "1", "2", "3")
_CHUNK = 32
_RATIOS = (0.5, 1.0, 2.0)
_MOMENTUM = 0.1
"""torch's own. MobileNetV3's 0.01 knows nothing of the frames yet after a few hundred steps."""

Side = Annotated[float, Field(gt=0)]
Proposals = Annotated[int, Field(gt=0, lt=3840)]
"""TensorRT sorts fewer than 3840 at a time."""


class MaskRcnnOptions(Options):
    """What fits floes of 6 to 200 px in frames of 384x640.

    width, box_width: channels of pyramid, proposals and masks, and of what scores a box;
    anchors_px: one side for each level of the pyramid (a cell is 4, 8, 16, 32, 64 px);
    proposals_training, proposals: the best of each level before, and of all after, those that
    overlap are dropped; boxes_learnt: how many of those a training step draws from each frame, at
    most a quarter of them on floes; detections: the most floes of a frame; least_score: what is
    not told; least_area_px: floes smaller than this in training are passed over.
    """

    width: Channels = 128
    box_width: Channels = 512
    anchors_px: tuple[Side, Side, Side, Side, Side] = (8, 16, 32, 64, 128)
    proposals_training: tuple[Proposals, Proposals] = (2000, 1000)
    proposals: tuple[Proposals, Proposals] = (1000, 1000)
    boxes_learnt: Annotated[int, Field(gt=0)] = 512
    detections: Annotated[int, Field(gt=0)] = 500
    least_score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    least_area_px: Annotated[int, Field(ge=1)] = 9

    @model_validator(mode="after")
    def _a_proposal_for_each_detection(self) -> MaskRcnnOptions:
        if self.proposals[1] < self.detections:
            message = f"expected at least {self.detections} proposals, one for each of detections"
            raise ValueError(message)
        return self


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Instances:
    """The floes of one frame, best first.

    boxes: float32 ``[N, 4]``, x1, y1, x2, y2 in pixels, 0 at the centre of the first pixel;
    scores: float32 ``[N]``, 0..1; labels: int64 ``[N]``, indices of the class map;
    masks: float32 ``[N, 28, 28]``, probability 0..1 in cells of the box (see ``paste``).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class InstanceMember(Member):
    """Mask R-CNN (arXiv 1703.06870), torchvision's, over a feature pyramid (arXiv 1612.03144).

    Frames are taken at the size they have. Encoder and pyramid have batch norms that learn, as
    the usual encoder parameters need them; they cost nothing in an engine. What comes after the
    pyramid has no norm, and runs in float32 whatever the precision: bfloat16 holds places in a
    frame to some 4 px only.
    """

    kind: ClassVar[Kind] = "floes"
    options: MaskRcnnOptions

    def __init__(self, facts: MemberFacts) -> None:
        """Build it with random parameters; ConfigError for an unknown encoder."""
        super().__init__(facts, size_multiple=_COARSEST)
        self.ice, self.water = facts.ice, facts.water
        self.network = _network(
            facts.encoder, cast("MaskRcnnOptions", facts.options), len(self.ice)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logit of the probability of each ice class, float32 ``[B, K, H, W]``.

        frames: BGR float32 ``[B, 3, H, W]``, 0..255. The probability is the greatest
        score * mask of the floes of the class that cover the pixel, 0 where none does; logits
        are held within ``LOGIT_LIMIT``. The greatest, not 1 - (1 - p1)(1 - p2)…: detections that
        overlap are mostly one floe seen twice, so that many weak ones must not add up to a sure
        one. Without gradients. Raises ConfigError for a size that is not a multiple of 32.
        """
        size = (frames.shape[-2], frames.shape[-1])
        probabilities = torch.stack([self._ice(found, size) for found in self.instances(frames)])
        least = torch.sigmoid(torch.tensor(-LOGIT_LIMIT)).item()
        return torch.logit(probabilities, eps=least)

    @torch.no_grad()
    def instances(self, frames: Tensor) -> list[Instances]:
        """Return the floes of each frame, at most ``detections``, those of ``least_score``."""
        self.check_size((frames.shape[-2], frames.shape[-1]))
        found, _ = self._run(self.normalised(frames), None)
        return [
            Instances(
                boxes=one["boxes"],
                scores=one["scores"],
                labels=torch.tensor(self.ice, device=frames.device)[one["labels"] - 1],
                masks=one["masks"][:, 0],
            )
            for one in found
        ]

    def loss(self, frames: Tensor, masks: Tensor, floes: Tensor) -> Tensor:
        """Return the sum of torchvision's five losses, a scalar.

        frames: BGR float32 ``[B, 3, H, W]``, 0..255; masks: uint8 ``[B, H, W]``;
        floes: int ``[B, H, W]``, 0 or the floe's number. A frame without floes is all background.

        Pixels that are not valid are painted in the mean colour before the network sees them:
        ice that nobody drew is then neither a floe to find nor a false alarm.
        """
        self.check_size((frames.shape[-2], frames.shape[-1]))
        valid = (masks != NOT_VALID).unsqueeze(1)
        targets = [self.targets(*pair) for pair in zip(masks, floes, strict=True)]
        _, losses = self._run(self.normalised(frames) * valid, targets)
        return torch.stack(list(losses.values())).sum()

    def targets(self, mask: Tensor, floes: Tensor) -> dict[str, Tensor]:
        """Return the floes of a frame as torchvision takes them.

        mask: uint8 ``[H, W]``; floes: int ``[H, W]``. A floe is its pixels whose class is ice, of
        the class that most of them have; those with fewer than ``least_area_px`` are left out.

        Returns boxes float32 ``[N, 4]`` (x1, y1, x2, y2, 0 at the centre of the first pixel, out
        to the outer edges), labels int64 ``[N]`` (1 for the first ice class), masks bool
        ``[N, H, W]``.
        """
        classes = mask.long()
        ice = torch.tensor(self.ice, device=mask.device)
        numbers = torch.where(torch.isin(classes, ice), floes.long(), 0)
        known, place = torch.unique(numbers, return_inverse=True)
        counts = torch.stack([((classes == index) * (numbers > 0)).flatten() for index in ice])
        areas = torch.zeros(len(ice), len(known), dtype=torch.long, device=mask.device)
        areas.index_add_(1, place.flatten(), counts.long())
        kept = (areas.sum(dim=0) >= self.options.least_area_px).nonzero()[:, 0]
        return {
            "boxes": _outer_edges(place, len(known))[kept],
            "labels": areas.argmax(dim=0)[kept] + 1,
            "masks": place == kept[:, None, None],
        }

    def decide(self, frames: Tensor) -> Tensor:
        """Return the class of each pixel, int64 ``[B, H, W]``: ice, or else the first water."""
        (alone,) = member_probabilities(
            [self(frames)],
            kinds=[self.kind],
            weights=[1.0],
            temperatures=[1.0],
            ice=self.ice,
            water=self.water,
            classes=self.classes,
        )
        return alone.argmax(dim=1)

    def parts(self) -> dict[str, nn.Module]:
        """Return ``encoder``, ``decoder`` and ``head``: together, all of the parameters.

        The head is the two predictors alone: nothing else depends on what the ice classes are.
        """
        backbone, floes = self.network.backbone, self.network.roi_heads
        pyramid = backbone.get_submodule("fpn")
        return {
            "encoder": backbone.get_submodule("body"),
            "decoder": nn.ModuleList([pyramid, self.network.rpn, floes.box_head, floes.mask_head]),
            "head": nn.ModuleList([floes.box_predictor, floes.mask_predictor]),
        }

    def _run(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return what torchvision finds in normalised images, or its losses against targets."""
        from torchvision.models.detection.image_list import ImageList  # noqa: PLC0415 - slow

        network = self.network
        for head in (network.rpn, network.roi_heads):
            head.train(targets is not None)  # finding or learning; nothing else depends on it
        features = {name: level.float() for name, level in network.backbone(images).items()}
        sizes = [(images.shape[-2], images.shape[-1])] * len(images)
        with torch.autocast(images.device.type, enabled=False):
            proposals, drawn = network.rpn(ImageList(images, sizes), features, targets)
            found, scored = network.roi_heads(features, proposals, sizes, targets)
        return found, drawn | scored

    def _ice(self, found: Instances, size: Size) -> Tensor:
        """Return the probability of each ice class, float32 ``[K, H, W]``."""
        best = [torch.zeros(size, device=found.boxes.device) for _ in self.ice]
        for at in _chunks(len(found.boxes)):
            pasted = paste(found.masks[at], found.boxes[at], size)
            pasted = pasted * found.scores[at, None, None]
            for channel, index in enumerate(self.ice):
                own = pasted * (found.labels[at] == index)[:, None, None]
                best[channel] = torch.maximum(best[channel], own.amax(dim=0))
        return torch.stack(best)


def paste(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Return the masks of boxes, float32 ``[N, M, M]``, as pixels of a frame, ``[N, H, W]``.

    boxes: ``[N, 4]``, 0 at the centre of the first pixel. Bilinear between the cells' centres,
    0 outside, as two products of matrices of fixed shape. It undoes exactly what torchvision does
    to the masks that are learnt (``project_masks_on_boxes``). Its own ``paste_masks_in_image``
    cuts boxes to whole pixels, which moves and widens a floe by half a pixel: of a drawn ellipse
    12 px wide, known perfectly, that keeps an IoU of 0.8, this 1.0.

    A box that holds the centres of the frame's outermost pixels ends there only because torchvision
    clips it to 0..W: the floe goes on, so its last cells count in full up to the frame's edge.
    """
    rows = _bilinear(size[0], boxes[:, 1], boxes[:, 3], masks.shape[1])
    columns = _bilinear(size[1], boxes[:, 0], boxes[:, 2], masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _bilinear(length: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Return how much each cell between low and high counts at each pixel, ``[N, length, M]``."""
    pixels = torch.arange(length, dtype=torch.float32, device=low.device)
    centres = torch.arange(cells, dtype=torch.float32, device=low.device)
    cells_per_pixel = cells / (high - low).clamp(min=1e-3)
    at = (pixels - low[:, None]) * cells_per_pixel[:, None] - 0.5
    first = torch.where(low <= 0, 0.0, -1.0)
    last = torch.where(high >= length - 1, cells - 1.0, float(cells))
    at = at.clamp(min=first[:, None], max=last[:, None])
    return (1 - (at[:, :, None] - centres).abs()).clamp(min=0)


def _outer_edges(place: Tensor, count: int) -> Tensor:
    """Return boxes float32 ``[count, 4]`` of the numbers below count in a map int64 ``[H, W]``."""
    height, width = place.shape
    rows = torch.arange(height, device=place.device)[:, None].expand(height, width)
    columns = torch.arange(width, device=place.device).expand(height, width)
    start = torch.zeros(count, dtype=torch.long, device=place.device)
    extreme = partial(start.scatter_reduce, 0, place.flatten(), include_self=False)
    low = [extreme(axis.flatten(), reduce="amin") - 0.5 for axis in (columns, rows)]
    high = [extreme(axis.flatten(), reduce="amax") + 0.5 for axis in (columns, rows)]
    return torch.stack(low + high, dim=1)


def _chunks(count: int) -> Iterator[slice]:
    """Yield slices: all floes of a frame as float masks would be half a gigabyte."""
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))


def _network(encoder: str, options: MaskRcnnOptions, labels: int) -> MaskRCNN:
    from torchvision.models.detection import (  # noqa: PLC0415 - slow
        anchor_utils,
        faster_rcnn,
        mask_rcnn,
    )

    width, box_width, found = options.width, options.box_width, labels + 1
    network = mask_rcnn.MaskRCNN(
        _pyramid(encoder, width),
        rpn_anchor_generator=anchor_utils.AnchorGenerator(
            tuple((side,) for side in options.anchors_px), (_RATIOS,) * len(options.anchors_px)
        ),
        rpn_pre_nms_top_n_train=options.proposals_training[0],
        rpn_post_nms_top_n_train=options.proposals_training[1],
        rpn_pre_nms_top_n_test=options.proposals[0],
        rpn_post_nms_top_n_test=options.proposals[1],
        box_head=faster_rcnn.TwoMLPHead(width * 7 * 7, box_width),
        box_predictor=faster_rcnn.FastRCNNPredictor(box_width, found),
        box_score_thresh=options.least_score,
        box_batch_size_per_image=options.boxes_learnt,
        box_detections_per_img=options.detections,
        mask_head=mask_rcnn.MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(width, width, found),
    )
    network.transform = nn.Identity()  # frames come normalised, at their size
    return network


def _pyramid(encoder: str, width: int) -> nn.Module:
    """Return maps at 4, 8, 16, 32 and 64 px a cell, each ``width`` channels."""
    from torchvision.models import get_model  # noqa: PLC0415 - slow
    from torchvision.models.detection.backbone_utils import BackboneWithFPN  # noqa: PLC0415 - slow

    if encoder not in ENCODERS:
        raise ConfigError(
            f"unknown encoder {encoder!r} of maskrcnn", expected=f"one of {', '.join(ENCODERS)}"
        )
    body = get_model(encoder, weights=None)
    if encoder.startswith("resnet"):
        stages = [f"layer{stage}" for stage in (1, 2, 3, 4)]
        channels = [body.inplanes // 8 * 2**stage for stage in range(4)]
    else:
        body = body.features
        halvings = [at for at, block in enumerate(body) if getattr(block, "_is_cn", False)]
        ends = [*halvings[-4:-1], len(body) - 1]
        stages, channels = [str(at) for at in ends], [body[at].out_channels for at in ends]
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _MOMENTUM
    levels = dict(zip(stages, _LEVELS, strict=True))
    pyramid: nn.Module = BackboneWithFPN(body, levels, channels, width, norm_layer=nn.BatchNorm2d)
    return pyramid

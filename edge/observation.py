"""What a cycle yields, and the messages it becomes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.clock import clock_quality, utc_now
from edge.contract.classes import NOT_VALID
from edge.contract.coverage import concentration_tenths, measure, sigrid3_ct
from edge.contract.masks import encode_png
from edge.contract.messages import (
    DETAIL_CHARACTERS,
    ClassCoverage,
    CoverageMessage,
    MemberCoverage,
    ModelInfo,
    NoDataMessage,
    Quality,
    Topics,
    new_id,
    rfc3339,
)
from edge.geometry import region_id, region_mask
from edge.outbox import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from edge.contract.bundle import Bundle, Graph
    from edge.contract.coverage import Coverage
    from edge.contract.frames import Frame, Size, TimeSource
    from edge.contract.masks import Mask
    from edge.engine import Segmentation
    from edge.geometry import Polygon


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Which frame of which camera an observation is of. ``id`` is made once, at capture."""

    id: UUID
    station: str
    camera: str
    captured_at: datetime
    time_source: TimeSource
    region_id: str | None

    @classmethod
    def of(
        cls,
        station: str,
        camera: str,
        captured_at: datetime,
        time_source: TimeSource,
        region: Sequence[Polygon] = (),
    ) -> Origin:
        """Make the origin of a new observation."""
        return cls(
            id=new_id(captured_at),
            station=station,
            camera=camera,
            captured_at=captured_at,
            time_source=time_source,
            region_id=region_id(region),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A frame that was segmented: the mask with 255 outside the region, and its coverage."""

    origin: Origin
    frame_size: Size
    mask: Mask
    coverage: Coverage
    graph: Graph
    model: ModelInfo

    def message(self, seq: int, epoch: str, mask_sha256: str) -> CoverageMessage:
        """Return the coverage message of this observation."""
        fraction = self.coverage.ice_pixel_fraction
        return CoverageMessage(
            **_origin_fields(self.origin, seq, epoch),
            ice_pixel_fraction=fraction,
            spread=self.coverage.spread,
            concentration_tenths=concentration_tenths(fraction),
            sigrid3_ct=sigrid3_ct(fraction),
            valid_pixel_fraction=self.coverage.valid_pixel_fraction,
            classes=tuple(
                ClassCoverage(
                    name=share.name,
                    role=share.role,
                    pixels=share.pixels,
                    pixel_fraction=share.pixel_fraction,
                )
                for share in self.coverage.classes
            ),
            members=tuple(
                MemberCoverage(name=name, weight=weight, ice_pixel_fraction=alone)
                for name, weight, alone in zip(
                    self.graph.members, self.graph.weights, self.coverage.members, strict=True
                )
            ),
            frame_size=self.frame_size,
            mask_size=(self.mask.shape[0], self.mask.shape[1]),
            quality=Quality(),
            model=self.model,
            mask_topic=Topics(self.origin.station).mask(self.origin.camera),
            mask_sha256=mask_sha256,
        )

    def drafts(self, seq: int, epoch: str) -> list[Draft]:
        """Return coverage and mask, ready for the outbox."""
        png = encode_png(self.mask)
        digest = hashlib.sha256(png).hexdigest()
        message = self.message(seq, epoch, digest)
        mask = Draft(
            kind="mask",
            topic=message.mask_topic,
            payload=png,
            content_type="image/png",
            properties={
                "id": str(self.origin.id),
                "captured_at": rfc3339(self.origin.captured_at),
                "sha256": digest,
            },
        )
        return [_coverage_draft(message), mask]

    def describe(self) -> str:
        """Return the finding in a few words for a log line."""
        fraction = self.coverage.ice_pixel_fraction
        return "neither ice nor water seen" if fraction is None else f"ice {fraction:.0%}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NotSeen:
    """A cycle that could not see, and why."""

    origin: Origin
    reason: str
    detail: str
    frame_size: Size | None
    model: ModelInfo

    def message(self, seq: int, epoch: str) -> NoDataMessage:
        """Return the no_data message of this observation."""
        return NoDataMessage(
            **_origin_fields(self.origin, seq, epoch),
            reason=self.reason,
            detail=" ".join(self.detail.split())[:DETAIL_CHARACTERS],
            frame_size=self.frame_size,
            quality=Quality(),
            model=self.model,
        )

    def drafts(self, seq: int, epoch: str) -> list[Draft]:
        """Return the one message, ready for the outbox."""
        return [_coverage_draft(self.message(seq, epoch))]

    def describe(self) -> str:
        """Return the reason in a few words for a log line."""
        return f"no data ({self.reason}: {self.detail})"


def read_mask(
    origin: Origin,
    bundle: Bundle,
    frame: Frame,
    segmentation: Segmentation,
    region: Sequence[Polygon] = (),
) -> Seen:
    """Count a segmentation inside a region of the frame."""
    answer = segmentation.answer
    graph = next(g for g in bundle.manifest.graphs if g.name == segmentation.graph)
    height, width = answer.mask.shape
    counted = region_mask(region, frame.size, (height, width))
    mask = answer.mask.copy()
    mask[~counted] = NOT_VALID
    return Seen(
        origin=origin,
        frame_size=frame.size,
        mask=mask,
        coverage=measure(
            mask,
            bundle.manifest.class_map,
            region=counted,
            member_masks=answer.member_masks,
            weights=graph.weights,
        ),
        graph=graph,
        model=model_info(bundle, segmentation),
    )


def model_info(bundle: Bundle, segmentation: Segmentation | None) -> ModelInfo:
    """Say what made a mask; graph and engine are null where nothing did."""
    return ModelInfo(
        bundle=bundle.manifest.id,
        sha256=bundle.sha256,
        graph=segmentation.graph if segmentation else None,
        engine=segmentation.engine if segmentation else None,
        degraded=segmentation.degraded if segmentation else "none",
    )


def _origin_fields(origin: Origin, seq: int, epoch: str) -> dict[str, Any]:
    return {
        "id": origin.id,
        "station": origin.station,
        "camera": origin.camera,
        "seq": seq,
        "outbox_epoch": epoch,
        "captured_at": origin.captured_at,
        "time_source": origin.time_source,
        "enqueued_at": utc_now(),
        "clock": clock_quality(),
        "region_id": origin.region_id,
    }


def _coverage_draft(message: CoverageMessage | NoDataMessage) -> Draft:
    return Draft(
        kind="coverage",
        topic=Topics(message.station).coverage(message.camera),
        payload=message.encode(),
        content_type="application/json",
        properties={
            "id": str(message.id),
            "schema": message.schema_id,
            "captured_at": rfc3339(message.captured_at),
        },
    )

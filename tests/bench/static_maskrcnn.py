"""How far the static Mask R-CNN is from torchvision's, and what it costs.

Both run in torch on the same frames with the same parameters, random ones and ones that were
trained here on drawn scenes. Each frame's floes are paired; the largest difference counts. Bars:
boxes (px) and scores 1e-4, masks 1e-3, nothing unresolved.

steps: the fewest steps of suppression that leave nothing unresolved, of proposals and of
detections. time: static over torchvision, of medians, measured by turns.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from edge.contract.files import write_atomically
from edge.engine import resize
from export.maskrcnn import SUPPRESSION_STEPS, Detections, StaticMaskRcnn, greedy_suppression
from train.data.dataset import read_dataset, read_frame
from train.models.architectures import build_member
from train.synth import make_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edge.contract.frames import Size
    from train.models.maskrcnn import InstanceMember, Instances

BOX_BAR_PX, SCORE_BAR, MASK_BAR = 1e-4, 1e-4, 1e-3
SIZE = (384, 640)
LEARNT_SIZE = (192, 320)
LEARNING_RATE, WARM_UP_STEPS = 1e-3, 20
GRADIENT_NORM = 5.0
WATER, ICE = 1, 2
REAL = Path(__file__).parents[2] / "train" / "datasets" / "agulhas_floes.toml"

Scene = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""frames float32 ``[1, 3, H, W]``, masks uint8 ``[1, H, W]``, floes int32 ``[1, H, W]``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Between the floes of one frame, the largest: px, 0..1, 0..1; logits of the ice classes.

    counts: floes of torchvision and of the static network; where they differ, or the floes cannot
    be paired one to one, the rest is infinite. unresolved: decisions of suppression.
    """

    counts: tuple[int, int]
    box_px: float
    score: float
    mask: float
    logit: float
    unresolved: int

    @property
    def passed(self) -> bool:
        """Whether it holds the bars."""
        near = self.box_px <= BOX_BAR_PX and self.score <= SCORE_BAR and self.mask <= MASK_BAR
        return near and self.unresolved == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The largest differences over the frames of one source; the time's ratio."""

    parameters: str
    source: str
    frames: int
    least_floes: int
    most_floes: int
    box_px: float
    score: float
    mask: float
    logit: float
    unresolved: int
    steps: tuple[int, int]
    seconds: tuple[float, float]
    passed: bool


def packed(
    seed: int, size: Size, *, step: int = 14, radii: tuple[float, float] = (3, 8), ice: int = 1
) -> Scene:
    """Return bright discs on dark water, one in each square of ``step`` px, hundreds in all.

    radii: px, from and to; ice: how many ice classes there are, from ICE on, taken by turns; they
    differ in colour.
    """
    rng = np.random.default_rng(seed)
    floes = np.zeros(size, np.int32)
    centres = [
        (y, x) for y in range(step // 2, size[0], step) for x in range(step // 2, size[1], step)
    ]
    for number, centre in enumerate(centres, 1):
        y, x = (int(16 * (along + rng.uniform(-4, 4))) for along in centre)
        cv2.circle(floes, (x, y), int(16 * rng.uniform(*radii)), number, cv2.FILLED, shift=4)
    classes = np.where(floes > 0, ICE + floes % ice, WATER)
    tones = np.array([[60, 60, 60], [60, 60, 60], *([200, 210 - 90 * k, 205] for k in range(ice))])
    tone = rng.uniform(0.75, 1.1, len(centres) + 1)[floes][..., None]
    frame = (tones[classes] * tone + rng.normal(0, 10, (*size, 3))).clip(0, 255)
    return _scene(frame, classes, floes)


def bay(seed: int, size: Size) -> Scene:
    """Return a drawn bay (``train.synth``), its floes as the connected parts of its ice."""
    scene = make_scene(seed, size)
    _, floes = cv2.connectedComponents((scene.mask == ICE).astype(np.uint8), connectivity=4)
    return _scene(scene.image, scene.mask, floes)


def _scene(frame: np.ndarray, mask: np.ndarray, floes: np.ndarray) -> Scene:
    return (
        torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None].contiguous(),
        torch.from_numpy(mask.astype(np.uint8))[None],
        torch.from_numpy(floes.astype(np.int32))[None],
    )


def learn(
    member: InstanceMember,
    scenes: Iterable[Scene],
    *,
    until: Callable[[int], bool],
    rate: float = LEARNING_RATE,
) -> int:
    """Train on scenes, one a step, until told after a step; return how many it took."""
    optimiser = torch.optim.AdamW(member.parameters(), lr=rate)
    steps = 0
    for scene in scenes:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (steps + 1) / WARM_UP_STEPS)
        optimiser.zero_grad()
        member.loss(*scene).backward()
        torch.nn.utils.clip_grad_norm_(member.parameters(), GRADIENT_NORM)
        optimiser.step()
        steps += 1
        if until(steps):
            break
    member.eval()
    return steps


@torch.inference_mode()
def difference(member: InstanceMember, static: StaticMaskRcnn, frames: torch.Tensor) -> Difference:
    """Compare the two on one frame, float32 ``[1, 3, H, W]``."""
    found, unresolved = static.find(frames)
    (expected,) = member.instances(frames)
    boxes, scores, masks = _furthest(expected, found)
    return Difference(
        counts=(len(expected.scores), int((found.scores > 0).sum())),
        box_px=boxes,
        score=scores,
        mask=masks,
        logit=_largest(member(frames) - static.logits(found)),
        unresolved=int(unresolved),
    )


@torch.inference_mode()
def steps_needed(static: StaticMaskRcnn, frames: torch.Tensor) -> tuple[int, int]:
    """Return the fewest steps that leave nothing of proposals and of detections unresolved."""
    needed: list[int] = []

    def counted(
        boxes: torch.Tensor, valid: torch.Tensor, *, threshold: float, steps: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needed.append(_longest_chain(boxes, valid, threshold))
        return greedy_suppression(boxes, valid, threshold=threshold, steps=steps)

    with patch("export.maskrcnn.greedy_suppression", counted):
        static.find(frames)
    proposals, detections = needed
    return proposals, detections


def _longest_chain(boxes: torch.Tensor, valid: torch.Tensor, threshold: float) -> int:
    """Return the fewest steps that leave nothing unresolved, at least 1."""
    steps = 1
    while greedy_suppression(boxes, valid, threshold=threshold, steps=steps)[1] > 0:
        steps += 1
    return steps


def _furthest(expected: Instances, found: Detections) -> tuple[float, float, float]:
    """Return the largest differences of boxes, scores and masks of floes paired one to one.

    Paired by label, score and box: floes of equal score may come in any order.
    """
    there = found.scores > 0
    ours = torch.cat(
        [found.boxes[there], found.scores[there, None], 1e4 * found.labels[there, None]], dim=1
    )
    theirs = torch.cat(
        [expected.boxes, expected.scores[:, None], 1e4 * expected.labels[:, None]], dim=1
    )
    if len(ours) != len(theirs):
        return np.inf, np.inf, np.inf
    if len(ours) == 0:
        return 0.0, 0.0, 0.0
    at = (ours[:, None] - theirs).abs().amax(dim=2).argmin(dim=1)
    if len(at.unique()) < len(at):
        return np.inf, np.inf, np.inf
    apart = ours - theirs[at]
    return (
        _largest(apart[:, :4]),
        _largest(apart[:, 4]),
        _largest(found.masks[there] - expected.masks[at]),
    )


def _largest(differences: torch.Tensor) -> float:
    return float(differences.abs().max())


@torch.inference_mode()
def seconds(
    member: InstanceMember, static: StaticMaskRcnn, frames: torch.Tensor, *, turns: int
) -> tuple[float, float]:
    """Return how long torchvision's and the static network take, medians of turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for kept, network in zip(taken, (member, static), strict=True):
            began = time.perf_counter()
            network(frames)
            kept.append(time.perf_counter() - began)
    return median(taken[0]), median(taken[1])


def compare(
    parameters: str,
    member: InstanceMember,
    source: str,
    frames: list[torch.Tensor],
    *,
    turns: int = 2,
) -> Row:
    """Compare the two on frames and time them on the first."""
    static = StaticMaskRcnn(member, SIZE)
    each = [difference(member, static, one) for one in frames]
    chains = [steps_needed(static, one) for one in frames]
    return Row(
        parameters=parameters,
        source=source,
        frames=len(each),
        least_floes=min(one.counts[0] for one in each),
        most_floes=max(one.counts[0] for one in each),
        box_px=max(one.box_px for one in each),
        score=max(one.score for one in each),
        mask=max(one.mask for one in each),
        logit=max(one.logit for one in each),
        unresolved=sum(one.unresolved for one in each),
        steps=(max(chain[0] for chain in chains), max(chain[1] for chain in chains)),
        seconds=seconds(member, static, frames[0], turns=turns),
        passed=all(one.passed for one in each),
    )


def real_frames(console: Console) -> list[torch.Tensor]:
    """Return the frames of agulhas_floes at SIZE; none, loudly, where there are none."""
    try:
        dataset = read_dataset(REAL)
    except ConfigError as problem:
        console.print(f"NO REAL IMAGES, SKIPPED: {problem}; set ICECAM_DATA")
        return []
    pictures = [
        resize(read_frame(dataset, item), SIZE, max_anisotropy=np.inf) for item in dataset.of("all")
    ]
    return [torch.from_numpy(one).float().permute(2, 0, 1)[None] for one in pictures]


def drawn_for_learning() -> Iterator[Scene]:
    """Yield bays and packed discs by turns, without end."""
    seed = 10_000
    while True:
        yield bay(seed, LEARNT_SIZE)
        yield packed(seed, LEARNT_SIZE, step=12 + seed % 4 * 8, radii=(3, 6 + seed % 4 * 4))
        seed += 1


def member_of() -> InstanceMember:
    """Return a member with the default options and random parameters, the same each time."""
    torch.manual_seed(0)
    roles = ("other", "water", "ice")
    classes = [
        {"index": index, "name": role, "role": role, "colour": (index, 0, 0)}
        for index, role in enumerate(roles)
    ]
    return build_member("maskrcnn", class_map=Classes.model_validate(classes)).eval()


def report(*, train_minutes: float, frames: int, console: Console) -> list[Row]:
    """Measure, print a table, and return its rows."""
    sources = {
        "bays": [bay(seed, SIZE)[0] for seed in range(frames)],
        "packed discs": [packed(seed, SIZE)[0] for seed in range(frames)],
        "agulhas_floes": real_frames(console),
    }
    member = member_of()
    rows = [compare("random", member, name, each) for name, each in sources.items() if each]
    until = time.monotonic() + 60 * train_minutes
    steps = learn(member, drawn_for_learning(), until=lambda _: time.monotonic() > until)
    rows += [
        compare(f"{steps} steps", member, name, each) for name, each in sources.items() if each
    ]
    console.print(_table(rows))
    return rows


def _table(rows: list[Row]) -> Table:
    table = Table(title=f"static Mask R-CNN at {SIZE[0]}x{SIZE[1]}, {SUPPRESSION_STEPS} steps")
    for name in (
        "parameters", "frames", "floes", "boxes px", "scores", "masks", "logits", "unresolved",
        "steps", "time", "bars",
    ):  # fmt: skip
        table.add_column(name)
    for row in rows:
        theirs, ours = row.seconds
        table.add_row(
            row.parameters,
            f"{row.frames} {row.source}",
            f"{row.least_floes} to {row.most_floes}",
            *(f"{value:.1g}" for value in (row.box_px, row.score, row.mask, row.logit)),
            str(row.unresolved),
            f"{row.steps[0]}, {row.steps[1]}",
            f"{ours:.2f} / {theirs:.2f} s = {ours / theirs:.2f}",
            "held" if row.passed else "MISSED",
        )
    return table


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m tests.bench.static_maskrcnn --train-minutes 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train-minutes", type=float, default=3.0, help="default 3")
    parser.add_argument("--frames", type=int, default=6, help="drawn, of each kind (default 6)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--json", type=Path, help="write the rows there")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = report(
        train_minutes=chosen.train_minutes, frames=chosen.frames, console=Console(width=160)
    )
    if chosen.json is not None:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        write_atomically(chosen.json, text.encode())
    if not all(row.passed for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

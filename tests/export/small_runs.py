"""Runs to export: random ones of any architecture, and small ones that learnt drawn bays."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count, cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tests.bench.static_maskrcnn import bay, learn, packed
from tests.train.classes import classes_of
from train.models.architectures import build_member
from train.models.maskrcnn import InstanceMember
from train.runs import Training, write_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edge.contract.classes import Classes
    from tests.bench.static_maskrcnn import Scene
    from train.models.members import Member
    from train.runs import Run

    Bytes = NDArray[np.uint8]

SIZE = (96, 160)
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("tu-test_resnet", {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}),
    "pspnet": ("tu-test_resnet", {"psp_out_channels": 16}),
    "maskrcnn": (
        "mobilenet_v3_small",
        {
            "width": 32,
            "box_width": 64,
            "boxes_learnt": 128,
            "proposals_training": [300, 200],
            "proposals": [500, 400],
            "detections": 400,
        },
    ),
}
"""Encoder and options of members that learn in seconds."""

SCENES = 32
STEPS = {"unet": 120, "pspnet": 200, "maskrcnn": 100}


@contextmanager
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def noise(frames: int = 2) -> list[Bytes]:
    """Return frames without anything on them."""
    return list(np.random.default_rng(1).integers(0, 256, (frames, *SIZE, 3), np.uint8))


def random_member(architecture: str) -> Member:
    """Return one with random parameters whose normalisation does something, as after training."""
    torch.manual_seed(len(architecture))
    member = build_member(architecture, class_map=classes_of(3))
    for module in member.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return member


def a_run(folder: Path, member: Member, class_map: Classes, **changes: Any) -> Run:  # noqa: ANN401
    """Write a member as a run named after its architecture."""
    fields: dict[str, Any] = {
        "name": member.architecture,
        "class_map": class_map,
        "input_size": SIZE,
        "training": Training(dataset="none", seed=0, epochs=0),
        **changes,
    }
    return write_run(folder, member, **fields)


def small_member(architecture: str, class_map: Classes) -> Member:
    """Return a small one with random parameters."""
    torch.manual_seed(len(architecture))
    encoder, options = SMALL[architecture]
    return build_member(architecture, encoder, class_map=class_map, options=options)


def scenes() -> list[Scene]:
    """Draw bays and packed floes by turns."""
    return [_floes(seed) if seed % 2 == 0 else bay(seed, SIZE) for seed in range(SCENES)]


def _floes(seed: int) -> Scene:
    return packed(seed, SIZE, step=14 + seed % 3 * 8, radii=(3, 7 + seed % 3 * 4))


def learnt_run(folder: Path, architecture: str, class_map: Classes, drawn: list[Scene]) -> Run:
    """Train a small member and write it as a run; one that sees floes learns packed ones alone."""
    member = small_member(architecture, class_map)
    if isinstance(member, InstanceMember):
        learn(member, map(_floes, count()), until=lambda steps: steps >= STEPS[architecture])
    else:
        _learn_surfaces(member, drawn, STEPS[architecture])
    return a_run(folder, member.eval(), class_map)


def _learn_surfaces(member: Member, drawn: list[Scene], steps: int) -> None:
    optimiser = torch.optim.AdamW(member.parameters(), lr=1e-2)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, total_iters=steps)
    batches = [drawn[first : first + 4] for first in range(0, len(drawn), 4)]
    for batch in islice(cycle(batches), steps):
        frames = torch.cat([scene[0] for scene in batch])
        masks = torch.cat([scene[1] for scene in batch]).long()
        optimiser.zero_grad()
        nn.functional.cross_entropy(member(frames), masks).backward()
        optimiser.step()
        slower.step()
    member.eval()


def unseen_frames() -> list[Bytes]:
    """Return frames that the small members did not learn from, uint8 BGR."""
    drawn = [bay(seed, SIZE) for seed in range(1000, 1003)]
    drawn += [_floes(seed) for seed in range(2000, 2003)]
    return [scene[0][0].permute(1, 2, 0).numpy().astype(np.uint8) for scene in drawn]

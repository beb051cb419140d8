"""What the members answer in torch: the answers that every engine is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edge.engine import Answer
from edge.engine.golden import GoldenAnswer
from export.graph import EnsembleGraph, planes, with_static_pooling
from export.maskrcnn import StaticMaskRcnn
from train.models.maskrcnn import InstanceMember
from train.models.members import Member
from train.runs import load_member

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from edge.contract.classes import Classes
    from edge.contract.frames import Pixels, Size
    from train.runs import Run

Network = Member | StaticMaskRcnn


@dataclass(frozen=True, kw_only=True, slots=True)
class WeighedRun:
    """A run with the weight and the temperature that it has in an ensemble."""

    run: Run
    weight: float
    temperature: float


class Networks:
    """The runs' networks in torch, each loaded once however many ensembles it is in."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Load them, static for the runs' input size."""
        self.size: Size = runs[0].input_size
        self.class_map: Classes = runs[0].class_map
        self._networks = {run.name: _static(run) for run in runs}
        self.unresolved = {name: 0 for name, one in self._networks.items() if one.kind == "floes"}
        """Suppressions of overlapping floes that were left unresolved on the frames answered."""

    def graph(self, ensemble: Sequence[WeighedRun]) -> EnsembleGraph:
        """Return some of the networks as one module over camera bytes."""
        networks = [self._networks[one.run.name] for one in ensemble]
        return EnsembleGraph(
            networks,
            [one.weight for one in ensemble],
            [one.temperature for one in ensemble],
            kinds=[one.kind for one in networks],
            class_map=self.class_map,
        ).eval()

    def answers(
        self, frame: Pixels, ensembles: Mapping[str, Sequence[WeighedRun]]
    ) -> dict[str, GoldenAnswer]:
        """Return what each ensemble answers to a uint8 BGR frame of the input size.

        Each network runs once.
        """
        with torch.inference_mode():
            pixels = planes(torch.from_numpy(frame[np.newaxis]))
            outputs = {
                name: self._output(name, network, pixels)
                for name, network in self._networks.items()
            }
            return {
                name: _golden(self.graph(ensemble), [outputs[one.run.name] for one in ensemble])
                for name, ensemble in ensembles.items()
            }

    def _output(self, name: str, network: Network, pixels: Tensor) -> Tensor:
        if not isinstance(network, StaticMaskRcnn):
            output: Tensor = network(pixels)
            return output
        found, unresolved = network.find(pixels)
        self.unresolved[name] += int(unresolved)
        return network.logits(found)


def _static(run: Run) -> Network:
    member = load_member(run)
    if isinstance(member, InstanceMember):
        return StaticMaskRcnn(member, run.input_size)
    with_static_pooling(member, torch.zeros(1, 3, *run.input_size))
    return member


def _golden(graph: EnsembleGraph, outputs: Sequence[Tensor]) -> GoldenAnswer:
    mask, confidence, members = graph.decide(outputs)
    best = graph.probabilities(outputs).topk(2, dim=1).values[0]
    return GoldenAnswer(
        answer=Answer(
            mask=mask[0].numpy(), confidence=confidence[0].numpy(), member_masks=members.numpy()
        ),
        margin=(best[0] - best[1]).numpy().astype(np.float16),
    )

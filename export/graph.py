"""The one graph: camera bytes in, decision out, for the whole ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from torch import Tensor, nn

from train.models.mixture import member_probabilities, mix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.contract.classes import Classes
    from edge.contract.frames import Size
    from train.models.members import Kind


class EnsembleGraph(nn.Module):
    """Members, temperatures and weights as one module over raw camera bytes.

    forward: frame uint8 ``[1, H, W, 3]`` BGR → mask uint8 ``[1, H, W]`` (class of the weighted mean
    of the members' calibrated probabilities), confidence uint8 ``[1, H, W]`` (round(255 * its
    probability)), member_masks uint8 ``[M, H, W]``.

    TensorRT takes uint8 only at the graph's rim, beside a cast from or to float: the frame is cast
    before it is transposed, and each output is float until its last node.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        weights: Sequence[float],
        temperatures: Sequence[float],
        *,
        kinds: Sequence[Kind],
        class_map: Classes,
    ) -> None:
        """Take trained members; of each a positive weight and temperature, and what it sees."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = list(weights)
        self.temperatures = list(temperatures)
        self.kinds: list[Kind] = list(kinds)
        self.ice, self.water = (class_map.indices(role) for role in ("ice", "water"))
        self.classes = len(class_map)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decide each pixel."""
        pixels = planes(frame)
        return self.decide([member(pixels) for member in self.members])

    def decide(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what ``forward`` does, from what the members returned."""
        confidence, mask = self.probabilities(outputs).max(dim=1)
        alone = [self._alone(*one) for one in zip(outputs, self.kinds, strict=True)]
        return to_bytes(mask), to_bytes(confidence * 255), to_bytes(torch.cat(alone))

    def probabilities(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the mean of what the members say of each pixel, float32 ``[1, C, H, W]``."""
        return mix(
            outputs,
            kinds=self.kinds,
            weights=self.weights,
            temperatures=self.temperatures,
            ice=self.ice,
            water=self.water,
            classes=self.classes,
        )

    def _alone(self, output: Tensor, kind: Kind) -> Tensor:
        """Return a member's own mask ``[1, H, W]``, as its ``decide`` does."""
        if kind == "surfaces":
            return output.argmax(dim=1)
        (probabilities,) = member_probabilities(
            [output],
            kinds=[kind],
            weights=[1.0],
            temperatures=[1.0],
            ice=self.ice,
            water=self.water,
            classes=self.classes,
        )
        return probabilities.argmax(dim=1)


def planes(frame: Tensor) -> Tensor:
    """Return a frame uint8 ``[1, H, W, 3]`` as members take it, float32 ``[1, 3, H, W]``."""
    return frame.float().permute(0, 3, 1, 2)


def to_bytes(values: Tensor) -> Tensor:
    """Round to uint8: float until the last step, as TensorRT wants it."""
    return values.float().round().clamp(0, 255).to(torch.uint8)


class MatrixPool(nn.Module):
    """Adaptive average pooling of a fixed map as two matrix products.

    The exporter turns adaptive pooling into a gather per cell where the size does not divide; this
    is the same mean over the same cells (cell i of k over n: ``i*n//k`` to ``ceil((i+1)*n/k)``,
    as torch.nn.AdaptiveAvgPool2d).
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, cells: Size, size: Size) -> None:
        """Prepare for maps of ``size`` (height, width), pooled to ``cells``."""
        super().__init__()
        self.register_buffer("rows", _cell_means(cells[0], size[0]))
        self.register_buffer("columns", _cell_means(cells[1], size[1]).T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """Pool float ``[B, C, height, width]`` to ``[B, C, cells[0], cells[1]]``."""
        return self.rows @ values @ self.columns


def _cell_means(cells: int, length: int) -> Tensor:
    means = torch.zeros(cells, length)
    for cell in range(cells):
        begin, end = cell * length // cells, -(-(cell + 1) * length // cells)
        means[cell, begin:end] = 1 / (end - begin)
    return means


class PyramidBranch(nn.Module):
    """A branch of PSPNet's pyramid: pool, project, stretch back (arXiv 1612.01105, figure 3).

    segmentation-models-pytorch's PSPBlock takes another path while it is exported, past the pooling
    that ``with_static_pooling`` replaces; this is the path it is trained with.
    """

    def __init__(self, pool: nn.Module) -> None:
        """Take the trained block's pooling and projection."""
        super().__init__()
        self.pool = pool

    def forward(self, values: Tensor) -> Tensor:
        """Map float ``[B, C, H, W]`` to ``[B, C', H, W]``."""
        return nn.functional.interpolate(
            self.pool(values), size=values.shape[2:], mode="bilinear", align_corners=True
        )


def with_static_pooling(model: nn.Module, example: Tensor) -> nn.Module:
    """Replace adaptive pooling that does not divide its map by MatrixPool, in place.

    The maps' sizes are learnt by running ``example`` once.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, PSPBlock):
            model.set_submodule(name, PyramidBranch(module.pool))
    sizes: dict[str, tuple[Size, Size]] = {}
    hooks = [
        module.register_forward_hook(_note_sizes(name, sizes))
        for name, module in model.named_modules()
        if isinstance(module, nn.AdaptiveAvgPool2d)
    ]
    with torch.inference_mode():
        model(example)
    for hook in hooks:
        hook.remove()
    for name, (size, cells) in sizes.items():
        if size[0] % cells[0] or size[1] % cells[1]:
            model.set_submodule(name, MatrixPool(cells, size))
    return model


def _note_sizes(
    name: str, sizes: dict[str, tuple[Size, Size]]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        height, width = inputs[0].shape[-2:]
        sizes[name] = (height, width), (output.shape[-2], output.shape[-1])

    return note

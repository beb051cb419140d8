"""The one graph: camera bytes in, decision out, for the whole ensemble."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.contract.frames import Size


class EnsembleGraph(nn.Module):
    """Members, temperatures and weights as one module over raw camera bytes.

    forward: frame uint8 ``[1, H, W, 3]`` BGR → mask uint8 ``[1, H, W]`` (class of the weighted mean
    of the members' calibrated probabilities), confidence uint8 ``[1, H, W]`` (round(255 * its
    probability)), member_masks uint8 ``[M, H, W]``.

    TensorRT takes uint8 only at the graph's rim, beside a cast from or to float: the frame is cast
    before it is transposed, and each output is float until its last node.
    """

    def __init__(
        self, members: Sequence[nn.Module], weights: Sequence[float], temperatures: Sequence[float]
    ) -> None:
        """Take trained members, one positive weight and one positive temperature for each."""
        super().__init__()
        self.members = nn.ModuleList(members)
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        self.temperatures = list(temperatures)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decide each pixel."""
        mean, member_masks = self.probabilities(frame)
        confidence, mask = mean.max(dim=1)
        return _byte(mask), _byte(confidence * 255), _byte(member_masks)

    def probabilities(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean float32 ``[1, C, H, W]`` and the members' own masks ``[M, H, W]``."""
        pixels = frame.float().permute(0, 3, 1, 2)
        logits = [member(pixels) for member in self.members]
        calibrated = (
            torch.softmax(_cooled(one, temperature), dim=1) * share
            for share, temperature, one in zip(self.shares, self.temperatures, logits, strict=True)
        )
        return reduce(torch.add, calibrated), torch.cat([one.argmax(dim=1) for one in logits])


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature; at 1 the graph has no such step."""
    return logits if temperature == 1 else logits / temperature


def _byte(values: Tensor) -> Tensor:
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

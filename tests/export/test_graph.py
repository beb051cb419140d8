"""The one graph: the same numbers as torch's own layers and as plain numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from segmentation_models_pytorch import PSPNet
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPBlock
from torch import Tensor, nn

from export.graph import EnsembleGraph, MatrixPool, PyramidBranch, with_static_pooling
from tests.train.classes import classes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@pytest.mark.parametrize("cells", [(1, 1), (2, 2), (3, 3), (6, 6), (6, 2), (5, 7)])
@pytest.mark.parametrize("size", [(28, 48), (7, 12), (13, 11), (6, 6)])
def test_pooling_as_two_matrices_is_torch_s_adaptive_average_pooling(
    cells: tuple[int, int], size: tuple[int, int]
) -> None:
    values = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(1))
    found = MatrixPool(cells, size)(values)
    expected = nn.AdaptiveAvgPool2d(cells)(values)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_cells_of_seven_rows_into_three_overlap_as_torch_documents() -> None:
    rows = torch.arange(7.0).reshape(1, 1, 7, 1)
    # Cells 0..2, 2..4, 4..6, ends included: floor(i 7 / 3) to ceil((i + 1) 7 / 3).
    assert MatrixPool((3, 1), (7, 1))(rows).flatten().tolist() == pytest.approx([1, 3, 5])


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_a_pyramid_branch_is_smp_s_own_block_in_eval(cells: int) -> None:
    torch.manual_seed(cells)
    block = PSPBlock(in_channels=16, out_channels=4, pool_size=cells).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    values = torch.randn(1, 16, 28, 48)
    with torch.inference_mode():
        torch.testing.assert_close(PyramidBranch(block.pool)(values), block(values))


def test_a_whole_pspnet_answers_the_same_after_its_pooling_was_made_static() -> None:
    torch.manual_seed(3)
    network = PSPNet("tu-resnet10t", encoder_weights=None, encoder_depth=3, classes=3).eval()
    frames = torch.randn(1, 3, 104, 184)
    with torch.inference_mode():
        expected = network(frames)
        changed = with_static_pooling(network, frames)
        torch.testing.assert_close(changed(frames), expected, rtol=1e-4, atol=1e-5)
    kinds = {type(module) for module in changed.modules()}
    assert MatrixPool in kinds
    assert PSPBlock not in kinds


def test_pooling_that_divides_its_map_stays_torch_s_own() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d((3, 2)))
    with_static_pooling(network, torch.zeros(1, 1, 8, 12))
    assert isinstance(network[0], nn.AdaptiveAvgPool2d)
    assert isinstance(network[1], MatrixPool)


class Linear(nn.Module):
    """Logits that are a matrix times a pixel's three bytes: easy to do again in numpy."""

    def __init__(self, matrix: Floats) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.tensor(matrix, dtype=torch.float32))

    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32
        return torch.einsum("kc,bchw->bkhw", self.matrix, pixels)


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def in_numpy(
    frame: NDArray[np.uint8],
    matrices: list[Floats],
    weights: list[float],
    temperatures: list[float],
) -> tuple[Floats, list[Floats]]:
    """The weighted mean of calibrated probabilities `(H, W, C)`, and each member's logits."""
    logits = [frame.astype(np.float64) @ matrix.T for matrix in matrices]
    calibrated = [softmax(one / t) for one, t in zip(logits, temperatures, strict=True)]
    return np.average(calibrated, axis=0, weights=weights), logits


def ensemble(
    members: list[nn.Module], weights: list[float], temperatures: list[float], *, classes: int
) -> EnsembleGraph:
    """Members that see surfaces."""
    return EnsembleGraph(
        members,
        weights,
        temperatures,
        kinds=["surfaces"] * len(members),
        class_map=classes_of(classes),
    )


def answer(graph: EnsembleGraph, frame: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    with torch.inference_mode():
        return tuple(one.numpy() for one in graph(torch.from_numpy(frame[None])))


@pytest.mark.parametrize(
    ("weights", "temperatures"),
    [
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        ([3.0, 0.5, 1.5], [1.0, 2.5, 0.4]),
        ([0.0625, 0.9, 0.0375], [1.5, 1.0, 3.0]),
    ],
)
def test_the_ensemble_is_softmax_mean_and_argmax_with_weights_and_temperatures(
    weights: list[float], temperatures: list[float]
) -> None:
    random = np.random.default_rng(21)
    matrices: list[Floats] = [random.normal(0, 0.01, (4, 3)) for _ in range(3)]
    frame = random.integers(0, 256, (32, 40, 3), np.uint8)
    graph = ensemble([Linear(matrix) for matrix in matrices], weights, temperatures, classes=4)
    mask, confidence, member_masks = answer(graph, frame)
    mean, logits = in_numpy(frame, matrices, weights, temperatures)
    assert (mask.dtype, confidence.dtype, member_masks.dtype) == (np.uint8,) * 3
    assert (mask.shape, member_masks.shape) == ((1, 32, 40), (3, 32, 40))
    best = np.sort(mean, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5  # float32 may decide a tie either way
    assert clear.mean() > 0.99
    assert np.array_equal(mask[0][clear], mean.argmax(axis=-1)[clear])
    assert np.abs(confidence[0] - 255 * mean.max(axis=-1)).max() <= 0.51
    for found, one in zip(member_masks, logits, strict=True):
        assert (found == one.argmax(axis=-1)).mean() > 0.999
    assert len(np.unique(mask)) > 1


def test_a_member_s_weight_decides_where_members_disagree() -> None:
    frame = np.full((1, 1, 3), 100, np.uint8)
    first, second = np.zeros((2, 3)), np.zeros((2, 3))
    first[0], second[1] = 0.01, 0.01  # logits (3, 0) and (0, 3): 0.953 against 0.953
    for weights, expected in (([2.0, 1.0], 0), ([1.0, 2.0], 1)):
        graph = ensemble([Linear(first), Linear(second)], weights, [1.0, 1.0], classes=2)
        mask, confidence, members = answer(graph, frame)
        assert mask.item() == expected
        # 2/3 * 0.95257 + 1/3 * 0.04743 = 0.65086, times 255 = 165.97
        assert confidence.item() == 166
        assert members.flatten().tolist() == [0, 1]


def test_a_temperature_softens_a_member_and_never_changes_its_own_decision() -> None:
    frame = np.full((1, 1, 3), 100, np.uint8)
    matrix = np.zeros((2, 3))
    matrix[1] = 0.01  # logits (0, 3)
    confidences = []
    for temperature in (0.5, 1.0, 10.0):
        graph = ensemble([Linear(matrix)], [1.0], [temperature], classes=2)
        mask, confidence, members = answer(graph, frame)
        assert (mask.item(), members.item()) == (1, 1)
        confidences.append(confidence.item())
    # 255 / (1 + exp(-3 / t)) for t = 0.5, 1, 10
    assert confidences == [254, 243, 146]


def test_a_member_of_floes_says_ice_and_shares_out_the_rest_as_the_others_do() -> None:
    """Classes other, water, ice; in numpy, pixel by pixel."""
    random = np.random.default_rng(22)
    surfaces: Floats = np.eye(3) * 0.02
    floes: Floats = np.array([[-0.0113, -0.0091, 0.0203]])
    frame = random.integers(0, 256, (32, 40, 3), np.uint8)
    graph = EnsembleGraph(
        [Linear(surfaces), Linear(floes)],
        [3.0, 1.0],
        [2.0, 0.5],
        kinds=["surfaces", "floes"],
        class_map=classes_of(3),
    )
    mask, confidence, members = answer(graph, frame)
    first = softmax(frame @ surfaces.T / 2)
    ice = 1 / (1 + np.exp(-(frame @ floes.T)[..., 0] / 0.5))
    water_share = first[..., 1] / (first[..., 0] + first[..., 1])
    second = np.stack([(1 - ice) * (1 - water_share), (1 - ice) * water_share, ice], axis=-1)
    mean = 0.75 * first + 0.25 * second
    best = np.sort(mean, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(mask[0][clear], mean.argmax(axis=-1)[clear])
    assert np.abs(confidence[0] - 255 * mean.max(axis=-1)).max() <= 0.6
    alone = np.where((frame @ floes.T)[..., 0] > 0, 2, 1)  # all that is not ice is water
    assert (members[0] == (frame @ surfaces.T).argmax(axis=-1)).mean() > 0.999
    assert (members[1] == alone).mean() > 0.999
    assert len(np.unique(mask)) == 3


def test_the_frame_reaches_members_as_blue_green_red_between_0_and_255() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(pixels)
            return pixels

    frame = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10
    mask, confidence, _ = answer(ensemble([Watching()], [1.0], [1.0], classes=3), frame)
    assert seen[0].shape == (1, 3, 2, 4)
    assert np.array_equal(seen[0][0].permute(1, 2, 0).numpy(), frame.astype(np.float32))
    assert (mask == 2).all()  # the third channel is the largest everywhere
    assert (confidence == 255).all()


@pytest.mark.parametrize(
    ("share", "byte"), [(0.5 + 1e-6, 128), (0.75, 191), (0.9, 230), (0.999, 255), (1 - 1e-7, 255)]
)
def test_confidence_is_the_nearest_byte_of_its_probability(share: float, byte: int) -> None:
    logit: Callable[[float], float] = lambda p: float(np.log(p / (1 - p)))  # noqa: E731
    matrix = np.zeros((2, 3))
    matrix[0, 0] = logit(share) / 100
    frame = np.full((1, 1, 3), 100, np.uint8)
    _, confidence, _ = answer(ensemble([Linear(matrix)], [1.0], [1.0], classes=2), frame)
    assert confidence.item() == byte

"""What torch cannot export is named, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edge.contract.errors import BundleError
from export.to_onnx import to_onnx


class Unspeakable(nn.Module):
    """Uses what ONNX has no operator for."""

    def forward(self, frame: Tensor) -> Tensor:
        return torch.linalg.svdvals(frame.float()[0, :, :, 0])


class Undecided(nn.Module):
    """Computes one thing or another, by what it sees."""

    def forward(self, frame: Tensor) -> Tensor:
        pixels = frame.float()
        return pixels if pixels.sum() > 3 else pixels * 2


@pytest.mark.parametrize(
    ("graph", "said"), [(Unspeakable(), "aten._linalg_svd"), (Undecided(), "data-dependent")]
)
def test_what_onnx_has_no_words_for_is_a_bundle_error(graph: nn.Module, said: str) -> None:
    with pytest.raises(BundleError, match=r"torch cannot export a member \(") as caught:
        to_onnx(graph, (8, 12))
    assert said in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    assert "\n" not in str(caught.value)

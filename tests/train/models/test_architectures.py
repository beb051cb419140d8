from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.contract.errors import ConfigError
from train.models.architectures import ARCHITECTURES, build_member


def member_of(architecture: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_member(architecture, classes=3, options=options).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_come_at_the_frame_s_size(architecture: str):
    with torch.inference_mode():
        logits = member_of(architecture)(torch.rand(2, 3, 64, 96) * 255)
    assert logits.shape == (2, 3, 64, 96)
    assert logits.dtype == torch.float32


def test_colour_order_and_normalisation_are_inside():
    """BGR bytes through the member = normalised RGB (torchvision's figures) through its network."""
    member = member_of("unet")
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    rgb = frame[:, :, ::-1].astype(np.float64) / 255
    normal = (rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        inside = member(torch.from_numpy(frame.transpose(2, 0, 1).copy())[None].float())
        outside = member.network(torch.from_numpy(normal.transpose(2, 0, 1).copy())[None].float())
    assert torch.allclose(inside, outside, atol=1e-4)


def test_the_normalisation_is_not_among_the_parameters():
    assert not {"mean", "std"} & set(member_of("unet").state_dict())


def test_the_usual_ensemble_is_small():
    total = sum(build_member(name, classes=3).parameter_count for name in ARCHITECTURES)
    assert 700_000 < total < 1_400_000


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_usual_members_carry_no_dead_parameters(architecture: str):
    """Every parameter gets a gradient, so none is shipped that the logits do not depend on."""
    member = build_member(architecture, classes=3)
    member(torch.rand(2, 3, 64, 96) * 255).square().sum().backward()
    assert [name for name, p in member.named_parameters() if p.grad is None] == []


def test_the_same_seed_gives_the_same_parameters():
    first, second = member_of("unet").state_dict(), member_of("unet").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_reach_the_network():
    narrow = build_member("unet", classes=2, options={"decoder_channels": [8, 8, 8, 8, 8]})
    wide = build_member("unet", classes=2, options={"decoder_channels": [64, 64, 32, 32, 16]})
    assert narrow.parameter_count < wide.parameter_count
    deep = build_member("pspnet", classes=2, options={"encoder_depth": 4})
    assert (deep.size_multiple, build_member("pspnet", classes=2).size_multiple) == (16, 8)


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"100x96 .*; expected multiples of 32"):
        member_of("unet").check_size((100, 96))
    with pytest.raises(ConfigError, match="multiples of 8"):
        member_of("pspnet")(torch.zeros(1, 3, 60, 64))


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "told"),
    [
        ("resunet", "", {}, "unknown architecture 'resunet'; expected one of unet, pspnet"),
        ("unet", "resnet999", {}, "encoder 'resnet999' is refused for unet: Wrong encoder name"),
        ("unet", "tu-nothing", {}, "encoder 'tu-nothing' is refused for unet: Unknown model"),
        ("unet", "tu-vit_tiny_patch16_224", {}, "is refused for unet: Unsupported model"),
        ("unet", "", {"decoder_chanels": [8]}, "did you mean 'decoder_channels'?"),
        ("unet", "", {"decoder_channels": [8, 8]}, "expected 5 decoder_channels"),
        ("pspnet", "", {"encoder_depth": 6}, "encoder_depth: expected less than or equal to 5"),
        ("pspnet", "", {"psp_dropout": 1}, "psp_dropout: expected less than 1"),
    ],
)
def test_what_is_unknown_is_refused_by_name(
    architecture: str, encoder: str, options: dict[str, object], told: str
):
    with pytest.raises(ConfigError) as caught:
        build_member(architecture, encoder, classes=3, options=options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)

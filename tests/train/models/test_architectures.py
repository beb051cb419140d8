from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from edge.contract.classes import Classes
from edge.contract.errors import ConfigError
from tests.train.classes import classes_of
from train.models.architectures import ARCHITECTURES, build_member, same_outputs, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.contract.classes import ClassMap
    from train.models.members import Kind

SEMANTIC = [name for name, row in ARCHITECTURES.items() if row.kind == "surfaces"]


def member_of(architecture: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_member(architecture, class_map=classes_of(3), options=options).eval()


@pytest.mark.parametrize("architecture", SEMANTIC)
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


def test_a_member_decides_for_its_greatest_logit():
    member = member_of("pspnet")
    frames = torch.rand(1, 3, 32, 48) * 255
    with torch.inference_mode():
        logits, decided = member(frames).numpy(), member.decide(frames).numpy()
    assert np.array_equal(decided, np.argmax(logits, axis=1))


def test_the_usual_ensemble_is_small():
    total = sum(
        build_member(name, class_map=classes_of(3)).parameter_count for name in ("unet", "pspnet")
    )
    assert 700_000 < total < 1_400_000


@pytest.mark.parametrize("architecture", SEMANTIC)
def test_the_usual_members_train_on_a_small_computer(architecture: str):
    assert build_member(architecture, class_map=classes_of(3)).parameter_count < 2_000_000


@pytest.mark.parametrize("architecture", SEMANTIC)
def test_the_usual_members_carry_no_dead_parameters(architecture: str):
    """Every parameter gets a gradient, so none is shipped that the logits do not depend on."""
    member = build_member(architecture, class_map=classes_of(3))
    member(torch.rand(2, 3, 64, 96) * 255).square().sum().backward()
    assert [name for name, p in member.named_parameters() if p.grad is None] == []


def test_what_a_shortened_encoder_never_runs_is_left_out_and_changes_no_logit():
    torch.manual_seed(0)
    ours = build_member("pspnet", "densenet121", class_map=classes_of(3)).eval()
    theirs = smp.PSPNet(
        "densenet121", encoder_weights=None, encoder_depth=3, psp_out_channels=128, classes=3
    ).eval()
    assert not [name for name in ours.state_dict() if "denseblock3" in name]
    kept = {name.removeprefix("network."): one for name, one in ours.state_dict().items()}
    assert theirs.load_state_dict(kept, strict=False).unexpected_keys == []
    with torch.inference_mode():
        frame = torch.rand(1, 3, 32, 48)
        assert torch.equal(ours.network(frame), theirs(frame))


def test_what_a_shortened_encoder_runs_for_nothing_stays():
    """EfficientNet's forward calls every block, those past the last feature too."""
    member = build_member("upernet", "efficientnet-b0", class_map=classes_of(3)).eval()
    with torch.inference_mode():
        assert member(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.parametrize(
    ("architecture", "build"),
    [
        ("unet", lambda: smp.Unet("resnet18", encoder_weights=None, classes=4)),
        ("pspnet", lambda: smp.PSPNet("resnet18", encoder_weights=None, encoder_depth=5)),
        ("deeplabv3plus", lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None)),
        ("upernet", lambda: smp.UPerNet("resnet18", encoder_weights=None, encoder_depth=5)),
    ],
)
def test_an_encoder_has_the_library_s_parameters(
    architecture: str, build: Callable[[], smp.base.SegmentationModel]
):
    options = {"decoder_channels": [8] * 5} if architecture == "unet" else {"encoder_depth": 5}
    member = build_member(architecture, "resnet18", class_map=classes_of(4), options=options)
    expected = {name: one.shape for name, one in build().encoder.state_dict().items()}
    found = {name: one.shape for name, one in member.parts()["encoder"].state_dict().items()}
    assert found == expected


@pytest.mark.parametrize("architecture", SEMANTIC)
def test_the_parts_share_out_all_parameters(architecture: str):
    member = build_member(architecture, class_map=classes_of(3))
    parts = member.parts()
    assert list(parts) == ["encoder", "decoder", "head"]
    each = [id(one) for part in parts.values() for one in part.parameters()]
    assert len(each) == len(set(each))
    assert set(each) == {id(one) for one in member.parameters()}


def test_the_same_seed_gives_the_same_parameters():
    first, second = member_of("unet").state_dict(), member_of("unet").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options_reach_the_network():
    narrow = build_member(
        "unet", class_map=classes_of(2), options={"decoder_channels": [8, 8, 8, 8, 8]}
    )
    wide = build_member(
        "unet", class_map=classes_of(2), options={"decoder_channels": [64, 64, 32, 32, 16]}
    )
    assert narrow.parameter_count < wide.parameter_count
    deep = build_member("pspnet", class_map=classes_of(2), options={"encoder_depth": 4})
    assert (deep.size_multiple, build_member("pspnet", class_map=classes_of(2)).size_multiple) == (
        16,
        8,
    )


def test_deeplab_s_dilations_reach_its_pyramid():
    member = build_member(
        "deeplabv3plus",
        class_map=classes_of(2),
        options={"decoder_atrous_rates": [2, 3, 5], "encoder_depth": 4},
    )
    dilations = {one.dilation[0] for one in member.parts()["decoder"].modules() if is_conv(one)}
    assert dilations == {1, 2, 3, 5}


def is_conv(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv2d)


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "multiple"),
    [
        ("unet", "tu-test_resnet", {}, 32),
        ("upernet", "tu-convnext_atto", {}, 16),
        ("deeplabv3plus", "resnet18", {}, 16),
        ("deeplabv3plus", "resnet18", {"encoder_output_stride": 8}, 8),
        ("deeplabv3plus", "resnet18", {"encoder_depth": 3}, 8),
        # its windows are 8x8 cells of 32 pixels
        ("unet", "tu-maxvit_nano_rw_256", {}, 256),
    ],
)
def test_the_size_multiple_is_what_the_network_takes(
    architecture: str, encoder: str, options: dict[str, object], multiple: int
):
    member = build_member(architecture, encoder, class_map=classes_of(2), options=options).eval()
    assert member.size_multiple == multiple
    size = (multiple, 2 * multiple)
    member.check_size(size)
    with torch.inference_mode():
        assert member(torch.zeros(1, 3, *size)).shape == (1, 2, *size)
    with pytest.raises(ConfigError, match=f"multiples of {multiple}"):
        member.check_size((multiple // 2, multiple))


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [("deeplabv3plus", "resnet18"), ("unet", "tu-maxvit_nano_rw_256")],
)
def test_less_than_the_size_multiple_the_library_does_not_take(architecture: str, encoder: str):
    member = build_member(architecture, encoder, class_map=classes_of(2)).eval()
    half = member.size_multiple // 2
    with torch.inference_mode(), pytest.raises((RuntimeError, AssertionError)):
        member.network(torch.zeros(1, 3, half, 2 * half))


def test_a_member_that_is_built_while_nothing_is_learnt_can_be_trained():
    with torch.inference_mode():
        member = build_member("psp-densenet", class_map=classes_of(2))
    member(torch.rand(2, 3, 16, 32)).sum().backward()
    assert all(one.grad is not None for one in member.parameters())


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"100x96 .*; expected multiples of 32"):
        member_of("unet").check_size((100, 96))
    with pytest.raises(ConfigError, match="multiples of 8"):
        member_of("pspnet")(torch.zeros(1, 3, 60, 64))


@pytest.mark.parametrize("architecture", ["deeplabv3plus", "upernet"])
def test_a_batch_of_one_frame_trains(architecture: str):
    member = build_member(architecture, class_map=classes_of(2)).train()
    member(torch.rand(1, 3, 64, 96)).sum().backward()


def test_a_class_map_says_how_many_classes(class_map: ClassMap):
    assert build_member("unet", class_map=class_map).classes == 3


@pytest.mark.parametrize(
    ("architecture", "encoder", "options", "told"),
    [
        ("resunet", "", {}, "unknown architecture 'resunet'; expected one of unet, pspnet, psp-"),
        ("unet", "resnet999", {}, "unknown encoder 'resnet999' (near: resnet50"),
        ("unet", "resnet10t", {}, "unknown encoder 'resnet10t' (near: tu-resnet10t"),
        ("unet", "tu-nothing", {}, "unknown encoder 'tu-nothing'"),
        ("unet", "tu-nothing", {}, "encoders.get_encoder_names(), or tu- and a name of timm.list"),
        ("unet", "tu-hf-hub:timm/resnet18", {}, "unknown encoder 'tu-hf-hub:timm/resnet18'"),
        ("unet", "tu-vit_tiny_patch16_224", {}, "is refused for unet: Unsupported model"),
        (
            "upernet",
            "tu-swin_tiny_patch4_window7_224",
            {},
            "encoder 'tu-swin_tiny_patch4_window7_224' is refused for upernet: Input height",
        ),
        (
            "deeplabv3plus",
            "densenet121",
            {},
            "encoder 'densenet121' is refused for deeplabv3plus: DenseNet encoders do not support",
        ),
        (
            "psp-densenet",
            "resnet18",
            {},
            "psp-densenet with encoder 'resnet18'; expected an encoder whose name begins with dens",
        ),
        ("deeplabv3plus", "", {"encoder_output_stride": 4}, "encoder_output_stride: expected 8 or"),
        ("deeplabv3plus", "", {"decoder_atrous_rates": [1, 2]}, "decoder_atrous_rates[2]: missing"),
        ("upernet", "", {"encoder_depth": 2}, "encoder_depth: expected greater than or equal to 3"),
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
        build_member(architecture, encoder, class_map=classes_of(3), options=options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_another_family_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match="begins with densenet"):
        settle("psp-densenet", "resnet18")
    assert settle("psp-densenet", "tu-densenet121")[0] == "tu-densenet121"
    assert settle("psp-densenet")[0] == "densenet121"


def mapped(*names_and_roles: tuple[str, str]) -> Classes:
    return Classes.model_validate(
        [
            {"index": index, "name": name, "role": role, "colour": (0, 0, 0)}
            for index, (name, role) in enumerate(names_and_roles)
        ]
    )


WATER, ICE, FAST, SHORE = (
    ("water", "water"),
    ("ice", "ice"),
    ("fast_ice", "ice"),
    ("shore", "other"),
)


@pytest.mark.parametrize(
    ("now", "surfaces", "floes"),
    [
        ((WATER, ICE, FAST), True, True),
        ((WATER, ICE, FAST, SHORE), False, True),
        ((ICE, WATER, FAST), False, True),
        ((("sea", "water"), ICE, FAST), False, True),
        ((WATER, FAST, ICE), False, False),
        ((WATER, ICE), False, False),
        ((WATER, ICE, ("fast_ice", "other")), False, False),
        ((WATER, ICE, ("grey_ice", "ice")), False, False),
    ],
)
def test_outputs_mean_the_same_where_all_classes_agree_and_for_floes_the_ice(
    now: tuple[tuple[str, str], ...], *, surfaces: bool, floes: bool
):
    kinds: tuple[Kind, ...] = ("surfaces", "floes")
    found = [same_outputs(kind, mapped(WATER, ICE, FAST), mapped(*now)) for kind in kinds]
    assert found == [surfaces, floes]


def test_a_want_of_memory_is_not_called_a_refusal():
    """A convolution of 10^13 channels, which no address space holds."""
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        build_member("pspnet", class_map=classes_of(2), options={"psp_out_channels": 10**13})


@pytest.mark.parametrize("encoder", ["tu-test_resnet", "resnet18"])
def test_a_network_that_runs_out_of_memory_is_not_called_a_refusal(
    encoder: str, monkeypatch: pytest.MonkeyPatch
):
    def forward(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(smp.Unet, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        build_member("unet", encoder, class_map=classes_of(2))


def test_a_refusal_keeps_the_library_s_own_error():
    with pytest.raises(ConfigError) as caught:
        build_member("deeplabv3plus", "densenet121", class_map=classes_of(2))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_defect_of_ours_is_not_called_a_refusal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.models.semantic._drop_unused", lambda *_: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        build_member("unet", "resnet18", class_map=classes_of(2))

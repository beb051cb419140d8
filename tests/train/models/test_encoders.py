from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision

from edge.contract.errors import ConfigError
from tests.train.classes import classes_of
from train.models.architectures import IMAGENET_MEAN, IMAGENET_STD, build_member
from train.models.encoders import load_encoder_parameters, normalisation_of, take_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from train.models.members import Member

SHALLOW = {"encoder_depth": 3, "decoder_channels": [8, 8, 8]}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that this machine may have fetched before, and nobody who answers."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.invalid")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "https://huggingface.invalid/{repo_id}/resolve/{revision}/{filename}",
    )
    return folder


def written(path: Path, tensors: Mapping[str, Tensor]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))
    return str(path)


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Running statistics that do something, so that a lost buffer shows."""
    for one in module.modules():
        if isinstance(one, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(one.running_mean, 0, 0.1)
            torch.nn.init.uniform_(one.running_var, 0.5, 1.5)
    return module.eval()


def small_unet(encoder: str = "tu-test_resnet", seed: int = 1) -> Member:
    torch.manual_seed(seed)
    return build_member("unet", encoder, class_map=classes_of(3), options=SHALLOW).eval()


@pytest.mark.parametrize(
    "encoder", ["test_resnet", "resnet10t", "mobilenetv4_conv_small_050", "convnext_atto"]
)
def test_from_timm_s_own_file_the_encoder_sees_what_timm_s_model_sees(tmp_path: Path, encoder: str):
    model = lively(timm.create_model(encoder, pretrained=False))
    source = written(tmp_path / "model.safetensors", model.state_dict())
    member = small_unet(f"tu-{encoder}")
    loaded = load_encoder_parameters(member, source)
    frame = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model.forward_intermediates(frame, intermediates_only=True)
        found = member.parts()["encoder"](frame)
    by_size = {one.shape: one for one in expected}
    compared = [one for one in found[1:] if one.shape in by_size]
    assert len(compared) >= 2
    for one in compared:
        torch.testing.assert_close(one, by_size[one.shape])
    assert (
        loaded.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    )
    assert loaded.tensors == len(member.parts()["encoder"].state_dict())
    assert loaded.describe() == f"{source} (sha256 {loaded.sha256})"


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121"])
def test_from_torchvision_s_classifier_the_encoder_gives_the_library_s_features(
    tmp_path: Path, encoder: str
):
    model = lively(torchvision.models.get_model(encoder, weights=None))
    source = written(tmp_path / "a.safetensors", model.state_dict())
    theirs = smp.encoders.get_encoder(encoder, depth=3, weights=None)
    theirs.load_state_dict(dict(model.state_dict()))
    member = build_member("pspnet", encoder, class_map=classes_of(3)).eval()
    load_encoder_parameters(member, source)
    frame = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        for one, other in zip(member.parts()["encoder"](frame), theirs.eval()(frame), strict=True):
            assert torch.equal(one, other)


def test_densenet_s_names_of_old_are_understood(tmp_path: Path):
    """As torchvision's published file still has them: norm.1 for norm1."""
    model = torchvision.models.densenet121(weights=None)
    old = {
        name.replace("norm1.", "norm.1.")
        .replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.")
        .replace("conv2.", "conv.2."): value
        for name, value in model.state_dict().items()
    }
    member = build_member("psp-densenet", class_map=classes_of(3))
    load_encoder_parameters(member, written(tmp_path / "old.safetensors", old))
    found = member.parts()["encoder"].state_dict()
    name = "features.denseblock1.denselayer2.conv1.weight"
    assert torch.equal(found[name], model.state_dict()[name])


@pytest.mark.parametrize("prefix", ["", "encoder.", "network.encoder."])
def test_an_encoder_s_own_names_are_found_under_each_prefix(tmp_path: Path, prefix: str):
    given = lively(smp.encoders.get_encoder("tu-test_resnet", depth=3, weights=None)).state_dict()
    tensors = {prefix + name: value for name, value in given.items()}
    if prefix:
        tensors["network.decoder.conv1.weight"] = torch.zeros(2)
    member = small_unet()
    load_encoder_parameters(member, written(tmp_path / "a.safetensors", tensors))
    found = member.parts()["encoder"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in given.items())


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_floe_finder_s_encoder_takes_torchvision_s_classifier_and_another_run(
    tmp_path: Path, encoder: str
):
    """The file's own model, run to where its last map is, against the encoder's last map."""
    model = lively(torchvision.models.get_model(encoder, weights=None))
    last = model.layer4 if encoder.startswith("resnet") else model.features
    maps: list[Tensor] = []
    last.register_forward_hook(lambda *given: maps.append(given[2]))
    options = {"width": 16, "box_width": 32}
    first, second = (
        build_member("maskrcnn", encoder, class_map=classes_of(3), options=options).eval()
        for _ in range(2)
    )
    frame = torch.rand(1, 3, 64, 96)
    load_encoder_parameters(first, written(tmp_path / "a.safetensors", model.state_dict()))
    load_encoder_parameters(second, written(tmp_path / "b.safetensors", first.state_dict()))
    with torch.inference_mode():
        model(frame)
        for member in (first, second):
            found = member.parts()["encoder"](frame)["3"]
            torch.testing.assert_close(found, maps[0])


def test_the_decoder_and_the_head_keep_their_random_parameters(tmp_path: Path):
    source = written(tmp_path / "a.safetensors", small_unet(seed=2).state_dict())
    member, before = small_unet(seed=3), small_unet(seed=3)
    load_encoder_parameters(member, source)
    for part in ("decoder", "head"):
        now, then = member.parts()[part].state_dict(), before.parts()[part].state_dict()
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_none_changes_nothing():
    member, before = small_unet(), small_unet().state_dict()
    loaded = load_encoder_parameters(member, "none")
    assert (loaded.source, loaded.sha256, loaded.tensors) == ("none", "", 0)
    assert loaded.describe() == "none"
    assert all(torch.equal(member.state_dict()[name], before[name]) for name in before)


def test_a_file_that_lacks_some_parameters_is_refused_and_nothing_is_taken(tmp_path: Path):
    tensors = timm.create_model("test_resnet", pretrained=False).state_dict()
    del tensors["layer1.0.conv1.weight"]
    tensors["conv1.0.weight"] = torch.zeros(1, 2, 3, 4)
    member, before = small_unet(), small_unet().state_dict()
    with pytest.raises(ConfigError) as caught:
        load_encoder_parameters(member, written(tmp_path / "a.safetensors", tensors))
    assert "a.safetensors: not the parameters of encoder tu-test_resnet: 2 of " in str(caught.value)
    assert "model.layer1.0.conv1.weight is missing" in str(caught.value)
    assert "model.conv1.0.weight is (1, 2, 3, 4), not (" in str(caught.value)
    assert all(torch.equal(member.state_dict()[name], before[name]) for name in before)


def test_a_file_without_counts_of_batches_is_as_good(tmp_path: Path):
    tensors = timm.create_model("test_resnet", pretrained=False).state_dict()
    old = {name: one for name, one in tensors.items() if "num_batches_tracked" not in name}
    assert load_encoder_parameters(small_unet(), written(tmp_path / "a.safetensors", old)).tensors


def test_a_pickle_is_refused_and_the_command_it_names_converts_it(tmp_path: Path):
    path = tmp_path / "encoder.pth"
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    with pytest.raises(ConfigError, match=r"encoder\.pth: not a \.safetensors file") as caught:
        load_encoder_parameters(small_unet(), str(path))
    command = shlex.split(str(caught.value).split("convert it: ")[1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    assert load_encoder_parameters(small_unet(), str(tmp_path / "encoder.safetensors")).tensors


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"no tensors at all", "not a .safetensors file"), (None, "No such file")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, told: str):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_encoder_parameters(small_unet(), str(path))
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "names"),
    [
        ("resnet18", "none, imagenet, ssl, swsl"),
        ("tu-resnet10t", "none, imagenet, c3_in1k"),
        ("tu-test_resnet", "none, imagenet, r160_in1k"),
    ],
)
def test_an_unknown_name_lists_what_the_encoder_has(encoder: str, names: str):
    with pytest.raises(ConfigError, match=f"expected one of {names}, or the path"):
        load_encoder_parameters(small_unet(encoder), "imagnet")
    with pytest.raises(ConfigError, match="unknown parameters 'imagnet'"):
        normalisation_of(encoder, "imagnet")


def test_for_an_encoder_without_named_parameters_a_file_is_asked_for():
    member = build_member("maskrcnn", "mobilenet_v3_small", class_map=classes_of(3))
    with pytest.raises(ConfigError) as caught:
        load_encoder_parameters(member, "imagenet")
    told = str(caught.value)
    assert "'imagenet' for encoder mobilenet_v3_small, for which no named ones exist" in told
    assert "expected none, or the path of a .safetensors file" in told


@pytest.mark.parametrize(
    ("encoder", "repo"),
    [("resnet18", "smp-hub/resnet18.imagenet"), ("tu-resnet10t", "timm/resnet10t.c3_in1k")],
)
def test_without_a_network_the_error_comes_soon_and_names_the_file_to_bring(
    encoder: str, repo: str
):
    member = small_unet(encoder)
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_encoder_parameters(member, "imagenet")
    assert time.monotonic() - began < 10
    told = str(caught.value)
    assert f"expected model.safetensors of {repo}: https://huggingface.invalid/{repo}/" in told
    assert "/model.safetensors" in told
    assert "give its path instead of the name" in told
    assert "\n" not in told


class Dropping(BaseHTTPRequestHandler):
    """A hub that promises a megabyte and hangs up after a few bytes of it."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", "1000000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"a few bytes")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dropping_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Dropping) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        hub = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("dropping_hub")
def test_a_network_that_drops_half_way_is_said_as_a_missing_one_is():
    with pytest.raises(ConfigError, match="could not be fetched") as caught:
        load_encoder_parameters(small_unet("resnet18"), "imagenet")
    assert not isinstance(caught.value.__cause__, OSError)  # else the test would say little
    assert "expected model.safetensors of smp-hub/resnet18.imagenet" in str(caught.value)


def test_what_is_in_the_cache_needs_no_network(empty_cache: Path):
    """The folders are those of the hub's client: snapshots by revision."""
    revision = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]["revision"]
    place = empty_cache / "models--smp-hub--resnet18.imagenet" / "snapshots" / revision
    given = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    written(place / "model.safetensors", given)
    settings = {"mean": [0.5, 0.25, 1], "std": [0.1, 0.2, 0.3], "input_range": [0, 1], "url": "x"}
    (place / "config.json").write_text(json.dumps(settings))
    member = small_unet("resnet18")
    loaded = load_encoder_parameters(member, "imagenet")
    assert "smp-hub/resnet18.imagenet" in loaded.file
    found = member.parts()["encoder"].state_dict()
    assert all(torch.equal(found[name], given[name]) for name in found)
    mean, std = normalisation_of("resnet18", "imagenet")
    assert mean == pytest.approx((127.5, 63.75, 255))
    assert std == pytest.approx((25.5, 51, 76.5))


def test_only_a_pickle_somewhere_is_said():
    with pytest.raises(ConfigError, match=r"only as a pickle, at https://github\.com/.*\.pth"):
        load_encoder_parameters(small_unet("tu-legacy_seresnet18"), "imagenet")


def test_the_normalisation_of_none_is_imagenet_s():
    assert normalisation_of("xception", "none") == (IMAGENET_MEAN, IMAGENET_STD)


def test_timm_says_what_its_parameters_were_trained_with():
    settings = timm.get_pretrained_cfg("mobilevit_xxs").to_dict()
    assert settings["mean"] == (0.0, 0.0, 0.0)  # else the test would say little
    for source in ("imagenet", "cvnets_in1k", "folder/a.safetensors"):
        found = normalisation_of("tu-mobilevit_xxs", source)
        assert found == ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


def config_beside(folder: Path, **settings: object) -> str:
    (folder / "config.json").write_text(
        json.dumps({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], **settings})
    )
    return str(folder / "model.safetensors")


def test_a_config_beside_the_file_says_the_normalisation(tmp_path: Path):
    half = (127.5, 127.5, 127.5)
    assert normalisation_of("xception", config_beside(tmp_path)) == (half, half)
    on_bytes = config_beside(tmp_path, mean=[104, 117, 123], std=[1, 1, 1], input_range=[0, 255])
    assert normalisation_of("resnet18", on_bytes) == ((104, 117, 123), (1, 1, 1))


def test_for_timm_s_encoders_too_the_config_beside_the_file_counts(tmp_path: Path):
    """timm keeps the settings one level down; resnet10t's usual ones are ImageNet's."""
    nested = {"architecture": "resnet10t", "pretrained_cfg": {"mean": [0] * 3, "std": [1] * 3}}
    flat = {"mean": [0.0] * 3, "std": [1.0] * 3}
    for settings in (nested, flat):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        for encoder in ("tu-resnet10t", "resnet18"):
            found = normalisation_of(encoder, str(tmp_path / "model.safetensors"))
            assert found == ((0, 0, 0), (255, 255, 255))


def test_what_is_wrong_in_timm_s_config_is_named(tmp_path: Path):
    wrong = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(ConfigError, match=r"pretrained_cfg\.std: expected three numbers above 0"):
        normalisation_of("tu-resnet10t", str(tmp_path / "model.safetensors"))


def test_a_run_beside_the_file_says_the_normalisation(tmp_path: Path):
    (tmp_path / "run.toml").write_text("mean = [1.0, 2.0, 3.0]\nstd = [4.0, 5.0, 6.0]\nx = 1\n")
    source = str(tmp_path / "model.safetensors")
    assert normalisation_of("tu-resnet10t", source) == ((1, 2, 3), (4, 5, 6))


def test_without_a_config_the_usual_encoders_see_as_imagenet_s(tmp_path: Path):
    source = str(tmp_path / "model.safetensors")
    assert normalisation_of("resnet18", source) == (IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ConfigError, match=r"no config\.json beside it; parameters of xception"):
        normalisation_of("xception", source)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"input_space": "BGR"}, "take BGR pictures; expected parameters for RGB"),
        ({"std": [0.5, 0, 0.5]}, "std: expected three numbers above 0"),
        ({"mean": [0.5]}, "mean"),
        ({"input_range": [-1, 1]}, "input_range[0]: expected greater than or equal to 0"),
    ],
)
def test_a_config_that_members_cannot_follow_is_refused(
    tmp_path: Path, settings: dict[str, object], told: str
):
    with pytest.raises(ConfigError) as caught:
        normalisation_of("resnet18", config_beside(tmp_path, **settings))
    assert told in str(caught.value)


def test_another_run_s_parameters_are_all_taken_where_the_classes_are_the_same():
    given, member = small_unet(seed=4).state_dict(), small_unet(seed=5)
    assert take_parameters(member, given, same_classes=True) == ()
    assert all(torch.equal(member.state_dict()[name], given[name]) for name in given)


def test_for_other_classes_the_head_stays_as_it_was_made():
    given = build_member(
        "unet", "tu-test_resnet", class_map=classes_of(5), options=SHALLOW
    ).state_dict()
    member, before = small_unet(seed=5), small_unet(seed=5).state_dict()
    assert take_parameters(member, given, same_classes=False) == ("head",)
    for name, value in member.state_dict().items():
        head = "segmentation_head" in name
        assert torch.equal(value, before[name] if head else given[name])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder_depth": 4, "decoder_channels": [8] * 4}, "is not one of its"),
        ({"decoder_channels": [16, 8, 8]}, "network.decoder."),
    ],
)
def test_another_network_s_parameters_are_refused_and_nothing_is_taken(
    change: dict[str, object], told: str
):
    options = {**SHALLOW, **change}
    given = build_member(
        "unet", "tu-test_resnet", class_map=classes_of(3), options=options
    ).state_dict()
    member, before = small_unet(), small_unet().state_dict()
    with pytest.raises(
        ConfigError, match="not the parameters of unet with tu-test_resnet: "
    ) as bad:
        take_parameters(member, given, same_classes=True)
    assert told in str(bad.value)
    assert all(torch.equal(member.state_dict()[name], before[name]) for name in before)


def test_a_head_of_other_classes_is_refused_where_the_classes_are_said_to_be_the_same():
    given = build_member(
        "unet", "tu-test_resnet", class_map=classes_of(5), options=SHALLOW
    ).state_dict()
    with pytest.raises(ConfigError, match=r"segmentation_head\.0\.weight is \(5, "):
        take_parameters(small_unet(), given, same_classes=True)


def test_a_floe_finder_s_head_alone_is_made_anew_for_another_number_of_ice_classes():
    def made(classes: int, seed: int) -> Member:
        torch.manual_seed(seed)
        options = {"width": 16, "box_width": 32}
        encoder = "mobilenet_v3_small"
        return build_member("maskrcnn", encoder, class_map=classes_of(classes), options=options)

    given = lively(made(6, 1)).state_dict()
    member, before = made(3, 2), made(3, 2).state_dict()
    assert take_parameters(member, given, same_classes=False) == ("head",)
    for name, value in member.state_dict().items():
        head = "box_predictor" in name or "mask_predictor" in name
        assert torch.equal(value, before[name] if head else given[name]), name

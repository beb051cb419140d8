from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.contract.boundary import read_toml
from edge.contract.bundle import Member as ManifestMember
from edge.contract.errors import ConfigError
from tests.train.classes import classes_of
from train.models.architectures import build_member
from train.runs import Run, Training, load_member, read_run, write_run
from train.toml import dump_toml

if TYPE_CHECKING:
    from train.data.dataset import Dataset


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_run(folder)
    return str(caught.value)


def change(folder: Path, old: str, new: str) -> None:
    toml = folder / "run.toml"
    assert old in toml.read_text()
    toml.write_text(toml.read_text().replace(old, new))


def test_a_run_reads_back_as_it_was_written(tiny_run: Run, tiny_dataset: Dataset):
    read = read_run(tiny_run.folder)
    assert read == tiny_run
    assert read.class_map == tiny_dataset.class_map
    assert (read.name, read.architecture, read.encoder) == ("run", "unet", "tu-test_resnet")
    assert read.input_size == (48, 64)
    assert sorted(path.name for path in tiny_run.folder.iterdir()) == [
        "metrics.json",
        "model.safetensors",
        "run.toml",
    ]


def test_the_loaded_member_answers_as_the_written_one(tmp_path: Path, tiny_dataset: Dataset):
    torch.manual_seed(11)
    member = build_member(
        "pspnet", class_map=classes_of(3), options={"psp_out_channels": 16}
    ).eval()
    run = write_run(
        tmp_path / "run",
        member,
        name="a",
        class_map=tiny_dataset.class_map,
        input_size=(64, 96),
        training=Training(dataset="none", seed=11, epochs=0),
    )
    loaded = load_member(read_run(run.folder))
    frames = torch.rand(1, 3, 64, 96) * 255
    with torch.inference_mode():
        assert torch.equal(member(frames), loaded(frames))
    assert not loaded.training
    assert loaded.normalisation == member.normalisation


def test_the_summary_fits_a_bundle_s_manifest(tiny_run: Run):
    summary = tiny_run.training_summary()
    assert summary["dataset"] == "tiny"
    assert not any("miou" in name for name in summary)
    ManifestMember(
        name=tiny_run.name,
        architecture=tiny_run.architecture,
        encoder=tiny_run.encoder,
        parameters=tiny_run.file.parameters,
        weight=1.0,
        training=summary,
    )


def test_a_finished_run_is_never_overwritten(tiny_run: Run, tiny_dataset: Dataset):
    before = {path: path.read_bytes() for path in tiny_run.folder.iterdir()}
    with pytest.raises(ConfigError, match="holds a finished run"):
        write_run(
            tiny_run.folder,
            load_member(tiny_run),
            name="b",
            class_map=tiny_dataset.class_map,
            input_size=(48, 64),
            training=Training(dataset="none", seed=0, epochs=0),
        )
    assert {path: path.read_bytes() for path in tiny_run.folder.iterdir()} == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nowhere")
    assert "expected a run folder" in refusal(tmp_path)


def test_an_unfinished_run_is_refused_by_that_name(tmp_path: Path):
    (tmp_path / "state.ckpt").write_bytes(b"...")
    assert "not finished" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("icecam.run/1", "icecam.run/2", "schema: expected 'icecam.run/1'"),
        ("height = 48", "height = 0", "input.height: expected greater than 0, found 0"),
        ("seed = 5", "seed = 'x'", "training.seed: expected"),
        ("seed = 5", "sed = 5", "training.sed: unknown key; did you mean 'seed'?"),
        ("name =", "nam =", "nam"),
        ("[input]", "[input", "not TOML"),
    ],
)
def test_a_wrong_run_toml_is_refused_by_the_path_to_the_field(
    tiny_run: Run, old: str, new: str, told: str
):
    change(tiny_run.folder, old, new)
    assert told in refusal(tiny_run.folder)
    assert "run.toml" in refusal(tiny_run.folder)


def test_a_model_that_is_missing_cut_short_or_changed_is_refused(tiny_run: Run):
    model = tiny_run.folder / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    assert "its sha256 is" in refusal(tiny_run.folder)
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its sha256 is" in refusal(tiny_run.folder)
    with pytest.raises(ConfigError, match="its sha256 is"):
        load_member(tiny_run)
    model.unlink()
    assert "model.safetensors: cannot be read" in refusal(tiny_run.folder)


def test_parameters_of_another_architecture_are_refused(tiny_run: Run, tiny_pspnet: Run):
    model = (tiny_pspnet.folder / "model.safetensors").read_bytes()
    (tiny_run.folder / "model.safetensors").write_bytes(model)
    change(tiny_run.folder, tiny_run.file.model_sha256, tiny_pspnet.file.model_sha256)
    with pytest.raises(ConfigError, match="not the parameters of unet with tu-test_resnet"):
        load_member(read_run(tiny_run.folder))


def test_a_model_that_is_no_safetensors_is_refused(tiny_run: Run):
    pickled = b"\x80\x04cos\nsystem\n"
    (tiny_run.folder / "model.safetensors").write_bytes(pickled)
    digest = hashlib.sha256(pickled).hexdigest()
    change(tiny_run.folder, tiny_run.file.model_sha256, digest)
    with pytest.raises(ConfigError, match="not the parameters"):
        load_member(read_run(tiny_run.folder))


def test_a_write_that_fails_leaves_no_run(
    tmp_path: Path, tiny_run: Run, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """run.toml comes last: whatever fails before it, there is no run to be misread."""
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.name == "run.toml":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        write_run(
            tmp_path / "new",
            load_member(tiny_run),
            name="b",
            class_map=tiny_dataset.class_map,
            input_size=(48, 64),
            training=Training(dataset="none", seed=0, epochs=0),
        )
    assert "cannot be read" in refusal(tmp_path / "new")


def test_metrics_are_json(tiny_run: Run):
    assert json.loads((tiny_run.folder / "metrics.json").read_text()) == {}


def test_runs_are_values(tiny_run: Run):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_run.folder = Path("/")  # type: ignore[misc]


plain = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)
values = st.recursive(
    st.one_of(plain, st.lists(plain)),
    lambda inner: st.one_of(
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
        st.lists(
            st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
            min_size=1,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=50)
@given(table=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values))
def test_what_is_written_as_toml_reads_back(table: dict[str, object]):
    """TOML 1.0: the standard library's reader is the judge."""
    with NamedTemporaryFile(suffix=".toml") as file:
        file.write(dump_toml(table).encode())
        file.flush()
        assert read_toml(Path(file.name), what="a table") == table


def test_toml_has_no_null_so_none_is_left_out():
    assert dump_toml({"a": None, "b": 1}) == "b = 1\n"
    with pytest.raises(TypeError, match="TOML has no bytes"):
        dump_toml({"a": b""})

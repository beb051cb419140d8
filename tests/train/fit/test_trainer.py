from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rich.console import Console

from edge.contract.boundary import parse
from edge.contract.errors import ConfigError
from train.data.dataset import read_dataset
from train.data.splits import hold_out
from train.fit.keeper import read_state
from train.fit.plan import Choice, Hardware, Settings
from train.fit.trainer import fit
from train.runs import images_seen, load_member, read_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from train.data.dataset import Dataset
    from train.runs import Run

REPOSITORY = Path(__file__).parents[3]
PSPNET = ["--architecture", "pspnet", "--encoder", "tu-test_resnet", "--size", "48x64"]
EPOCHS = 6


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are quicker on one thread, whoever else uses the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit_tiny(dataset: Dataset, out: Path, **changes: object) -> Run:
    said: dict[str, Any] = {
        "architecture": "unet",
        "encoder": "tu-test_resnet",
        "options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
        "height": 48,
        "width": 64,
        "epochs": 2,
        "batch_size": 1,
        "augmentation": "light",
        "seed": 4,
        **changes,
    }
    choice, settings = (
        parse(model, {key: said.pop(key) for key in model.model_fields if key in said}, where="fit")
        for model in (Choice, Settings)
    )
    return fit(dataset, choice, settings, out=out, **said)


def fit_pspnet(dataset: Dataset, out: Path, **changes: object) -> Run:
    settings = {"architecture": "pspnet", "options": {}, "epochs": EPOCHS, "batch_size": 2}
    return fit_tiny(dataset, out, **settings, **changes)


def parameters(run: Run) -> dict[str, torch.Tensor]:
    return load_member(run).state_dict()


def test_a_fit_leaves_a_whole_run_and_nothing_else(tiny_dataset: Dataset, tmp_path: Path):
    out = tmp_path / "runs" / "first"
    run = fit_tiny(tiny_dataset, out)
    assert read_run(out) == run
    assert {path.name for path in out.iterdir()} == {
        "run.toml",
        "model.safetensors",
        "metrics.json",
    }
    training = run.training_summary()
    assert (training["dataset"], training["images"], training["epochs"]) == ("tiny", 2, 2)
    assert run.name == "first"
    epochs = json.loads((out / "metrics.json").read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    best = max(epochs, key=lambda epoch: epoch["miou"])
    assert (training["best_epoch"], training["validation_miou"]) == (best["epoch"], best["miou"])


def test_a_terminal_shows_a_bar_and_a_summary(tiny_dataset: Dataset, tmp_path: Path):
    told = io.StringIO()
    console = Console(file=told, width=100, force_terminal=True, color_system=None)
    fit_tiny(tiny_dataset, tmp_path / "run", console=console)
    assert "epoch 2/2 · loss" in told.getvalue()
    assert "best mIoU" in told.getvalue()
    summary = told.getvalue().splitlines()[-4:]
    for line, word in zip(summary, ("member", "training", "validation", "run"), strict=True):
        assert word in line
    assert "2 images of tiny, 2 epochs" in summary[1]


@pytest.mark.slow
def test_a_fit_learns(tiny_dataset: Dataset, tmp_path: Path):
    run = fit_tiny(tiny_dataset, tmp_path / "run", epochs=25, learning_rate=1e-2)
    assert run.file.training.validation_miou is not None
    assert run.file.training.validation_miou > 0.8


def test_the_same_seed_gives_the_same_parameters(tiny_dataset: Dataset, tmp_path: Path):
    first, again, other = (
        fit_tiny(tiny_dataset, tmp_path / name, seed=seed)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first.file.model_sha256 == again.file.model_sha256
    assert first.file.model_sha256 != other.file.model_sha256


@pytest.mark.slow
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tiny: Path, tmp_path: Path):
    """SIGKILL after an epoch, then the same fit: the parameters of an uninterrupted one."""
    killed, whole = tmp_path / "killed" / "run", tmp_path / "whole" / "run"
    kill_after_an_epoch(tiny, killed)
    kept = len(read_state(killed / "state.ckpt")["callbacks"]["Keeper"]["history"])
    assert 1 <= kept < EPOCHS
    dataset = read_dataset(tiny)
    told = io.StringIO()
    resumed = fit_pspnet(dataset, killed, console=Console(file=told, width=100))
    assert f"going on after epoch {kept}" in told.getvalue()
    uninterrupted = fit_pspnet(dataset, whole)
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()
    expected = parameters(uninterrupted)
    for name, found in parameters(resumed).items():
        assert torch.allclose(found.double(), expected[name].double(), rtol=0, atol=1e-5)


def command_of(dataset: Path, out: Path) -> list[str]:
    options = ["--epochs", str(EPOCHS), "--batch", "2", "--seed", "4", "--augmentation", "light"]
    return ["fit", str(dataset), "-o", str(out), *PSPNET, *options]


def kill_after_an_epoch(dataset: Path, out: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *command_of(dataset, out)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout
    with process.stdout as lines:
        assert any(line.startswith("epoch   2/") for line in lines)
        process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_another_plan_does_not_go_on_from_a_state(tiny_dataset: Dataset, tmp_path: Path):
    out = interrupted(tiny_dataset, tmp_path)
    before = (out / "state.ckpt").read_bytes()
    with pytest.raises(ConfigError, match=r"epochs was 3, now 4.*seed was 4, now 5"):
        fit_tiny(tiny_dataset, out, epochs=4, seed=5)
    assert (out / "state.ckpt").read_bytes() == before


def test_a_damaged_state_is_refused(tiny_dataset: Dataset, tmp_path: Path):
    out = interrupted(tiny_dataset, tmp_path)
    state = out / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-2000])
    with pytest.raises(ConfigError, match=r"not a readable state .*Remove it"):
        fit_tiny(tiny_dataset, out, epochs=3)


def test_a_kill_in_the_middle_of_the_first_state_blocks_nothing(
    tiny_dataset: Dataset, tmp_path: Path
):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".state.ckpt.0123abcd.part").write_bytes(b"half")
    fit_tiny(tiny_dataset, out)
    assert len(list(out.iterdir())) == 3


def test_an_empty_state_is_refused(tiny_dataset: Dataset, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.ckpt").touch()
    with pytest.raises(ConfigError, match="not a readable state"):
        fit_tiny(tiny_dataset, tmp_path / "run")


def test_half_written_files_of_others_are_left_alone(tiny_dataset: Dataset, tmp_path: Path):
    theirs = tmp_path / ".thesis.pdf.part"
    theirs.write_bytes(b"half")
    with pytest.raises(ConfigError, match="holds other files"):
        fit_tiny(tiny_dataset, tmp_path)
    assert theirs.read_bytes() == b"half"


def test_a_file_where_the_folder_should_be_is_named(tiny_dataset: Dataset, tmp_path: Path):
    (tmp_path / "run").write_text("notes")
    with pytest.raises(ConfigError, match="run"):
        fit_tiny(tiny_dataset, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "notes"


def test_shares_of_pixels_cannot_balance_what_learns_floes(tiny_dataset: Dataset, tmp_path: Path):
    with pytest.raises(ConfigError, match="class_balance median for maskrcnn"):
        fit_tiny(
            tiny_dataset,
            tmp_path / "run",
            architecture="maskrcnn",
            encoder="",
            options={},
            height=64,
            width=96,
            max_anisotropy=2,
            class_balance="median",
        )


def test_a_state_never_runs_code(tiny_dataset: Dataset, tmp_path: Path):
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    out = tmp_path / "run"
    out.mkdir()
    (out / "state.ckpt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ConfigError, match="not a readable state"):
        fit_tiny(tiny_dataset, out)
    assert not (tmp_path / "owned").exists()


def interrupted(dataset: Dataset, tmp_path: Path) -> Path:
    """A fit that Ctrl-C stops after its first epoch; the handler of SIGINT is as it was."""
    out = tmp_path / "run"

    class Interrupting(Console):
        def print(self, *objects: object, **_: object) -> None:
            if any(str(text).startswith("epoch   1/") for text in objects):
                raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(dataset, out, epochs=3, console=Interrupting(file=io.StringIO()))
    assert signal.getsignal(signal.SIGINT) is before
    return out


def test_a_finished_run_is_refused_before_any_work(tiny_run: Run, tiny_dataset: Dataset):
    with pytest.raises(ConfigError, match="holds a finished run"):
        fit_tiny(tiny_dataset, tiny_run.folder)


def test_other_files_are_not_mixed_with_a_run(tiny_dataset: Dataset, tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds other files; expected a new or an empty folder"):
        fit_tiny(tiny_dataset, tmp_path)


def test_a_loss_that_is_no_number_stops_by_name(tiny_dataset: Dataset, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) in epoch .* lower learning"):
        fit_tiny(tiny_dataset, tmp_path / "run", epochs=4, learning_rate=1e30)
    assert not (tmp_path / "run" / "run.toml").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 0}, "epochs: "),
        ({"batch_size": -1}, "batch_size: "),
        ({"learning_rate": float("nan")}, "learning_rate: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**80}, "seed: "),
        ({"augmentation": "lots"}, "augmentation: "),
        ({"frozen": ("brain",)}, "frozen[0]: "),
        ({"encoder_parameters": "best"}, "best"),
        ({"frozen": ("encoder", "decoder", "head")}, "at least one part that is not frozen"),
        ({"hardware": Hardware(accelerator="cpu", devices=0)}, "devices 0"),
        ({"hardware": Hardware(accelerator="tpu")}, "accelerator tpu"),
        ({"hardware": Hardware(strategy="magic")}, "strategy magic"),
        ({"height": 50}, "expected multiples of 8"),
        ({"width": 96}, "would be distorted 1.50 times"),
        ({"crop": (20, 32)}, "expected multiples of 8"),
        ({"crop": (48, 96)}, "crop"),
        ({"name": "no spaces"}, "name: expected"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_leave_nothing(
    tiny_dataset: Dataset, tmp_path: Path, change: dict[str, Any], told: str
):
    with pytest.raises(ConfigError) as caught:
        fit_tiny(tiny_dataset, tmp_path / "run", **change)
    assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_dataset_with_defects_is_refused_before_training(tiny: Path, tmp_path: Path):
    (tiny / "masks" / "day-1_0.png").unlink()
    with pytest.raises(ConfigError, match=r"day-1_0\.png: has no mask"):
        fit_tiny(read_dataset(tiny), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_tells_an_error_in_one_line(tiny: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "train", "fit", str(tiny), "-o", str(tmp_path), "--size", "big"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --size big; expected HEIGHTxWIDTH, such as 224x384\n"


def test_help_is_quick_and_light():
    code = (
        "import sys; sys.argv = ['train', 'fit', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print({'torch', 'cv2', 'lightning', 'sklearn'} & set(sys.modules))"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("set()\n")
    assert "In stages, each from the one before" in done.stdout
    assert time.monotonic() - began < 10


def test_what_is_frozen_stays_as_it_was(tiny_dataset: Dataset, tmp_path: Path):
    first = fit_tiny(tiny_dataset, tmp_path / "first")
    second = fit_tiny(
        tiny_dataset, tmp_path / "second", start=first.folder, frozen=("encoder",), seed=9
    )
    before, after = parameters(first), parameters(second)
    same = {name for name in before if torch.equal(before[name], after[name])}
    encoder = {name for name in before if ".encoder." in name}
    assert encoder <= same
    assert any("running_mean" in name for name in encoder)
    assert {name for name in before if "segmentation_head" in name}.isdisjoint(same)


def test_another_start_gives_another_end(tiny_dataset: Dataset, tmp_path: Path):
    first = fit_tiny(tiny_dataset, tmp_path / "first", seed=1)
    second = fit_tiny(tiny_dataset, tmp_path / "second", start=first.folder, learning_rate=1e-12)
    scratch = fit_tiny(tiny_dataset, tmp_path / "scratch", learning_rate=1e-12)
    name = next(name for name in parameters(first) if name.endswith("conv1.weight"))
    assert torch.allclose(parameters(second)[name], parameters(first)[name], atol=1e-6)
    assert not torch.allclose(parameters(second)[name], parameters(scratch)[name], atol=1e-3)
    assert second.file.training.started_from == "tiny"


def test_other_classes_get_a_head_of_their_own(tiny: Path, tmp_path: Path):
    """Pretraining on masks without ice, then on masks with it."""
    toml = (tiny / "dataset.toml").read_text()
    merged = toml.replace("values = [10, 11]", "values = [10, 11, 20]")
    (tiny / "water.toml").write_text(merged[: merged.rindex("[[classes]]")] + _SPLIT)
    water = fit_tiny(read_dataset(tiny / "water.toml"), tmp_path / "water")
    assert len(water.class_map) == 2
    run = fit_tiny(read_dataset(tiny), tmp_path / "ice", start=water.folder)
    assert run.file.training.made_anew == ("head",)
    heads = [t.shape[0] for name, t in parameters(run).items() if "segmentation_head" in name]
    assert set(heads) == {3}


_SPLIT = """
[split]
validation = ["day-2"]
test = ["day-3"]
"""


def test_a_start_of_another_network_is_refused(tiny_pspnet: Run, tiny: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="not the parameters of unet"):
        fit_tiny(read_dataset(tiny), tmp_path / "run", start=tiny_pspnet.folder)
    assert not (tmp_path / "run").exists()


def test_patience_ends_a_fit_that_gets_no_better(tiny_dataset: Dataset, tmp_path: Path):
    run = fit_tiny(tiny_dataset, tmp_path / "run", epochs=40, patience=2, learning_rate=1e-9)
    training = run.file.training
    assert training.best_epoch is not None
    assert training.stopped_after == training.best_epoch + 2
    assert len(json.loads((run.folder / "metrics.json").read_text())["epochs"]) < 40


def test_a_group_held_out_is_never_seen(tiny_dataset: Dataset, tmp_path: Path):
    run = fit_tiny(hold_out(tiny_dataset, "day-1"), tmp_path / "run")
    assert run.file.training.held_out == "day-1"
    assert run.file.training.images == 3
    assert {name[:5] for name in images_seen(run)} == {"day-2", "day-3"}


def test_a_full_disk_is_named_and_the_last_state_stays_whole(tiny: Path, tmp_path: Path):
    """The kernel refuses files above a size (RLIMIT_FSIZE), as a full disk refuses them."""
    out = tmp_path / "run"
    kill_after_an_epoch(tiny, out)
    before = (out / "state.ckpt").read_bytes()
    code = (
        "import resource, signal, sys, runpy\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"sys.argv = ['train', *{command_of(tiny, out)!r}]\n"
        "runpy.run_module('train', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "state.ckpt: the state could not be written (File too large)" in done.stderr
    assert "make room and run the same fit again" in done.stderr
    assert [path.name for path in out.iterdir()] == ["state.ckpt"]
    assert (out / "state.ckpt").read_bytes() == before


def test_too_small_a_disk_is_refused_before_training(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match="Nothing was trained"):
        fit_tiny(tiny_dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mask_rcnn_trains_and_is_read_as_a_member(tiny: Path, tmp_path: Path):
    """By the command line: a run like any other, evaluated by the same command."""
    out = tmp_path / "floes"
    size = ["--size", "64x96", "--max-anisotropy", "1.5", "--epochs", "2", "--batch", "2"]
    for words in (
        ["fit", str(tiny), "-o", str(out), "--architecture", "maskrcnn", *size],
        ["evaluate", str(out), str(tiny), "--json", str(tmp_path / "floes.json")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "train", *words],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "floes.json").read_text())[0]
    assert np.array(found["figures"]["confusion"]).sum() > 0
    assert set(found["figures"]["iou"]) == {"sky", "water", "ice"}


@pytest.mark.slow
def test_two_processes_train_one_member(tiny: Path, tmp_path: Path):
    """Lightning's ddp on the CPU: as several GPUs would, through the command line."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "train", "fit", str(tiny), "-o", str(out), *PSPNET]
    command += ["--epochs", "2", "--batch", "1", "--accelerator", "cpu"]
    done = subprocess.run(
        [*command, "--devices", "2", "--strategy", "ddp"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch   2/2") == 1
    assert read_run(out).file.training.epochs == 2
    assert {path.name for path in out.iterdir()} == {
        "run.toml",
        "model.safetensors",
        "metrics.json",
    }

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional

from edge.contract.errors import ConfigError
from train.data.augment import augment
from train.data.dataset import read_dataset
from train.data.loader import Draw, Resized, Shuffle, training_batches
from train.fit.keeper import read_state
from train.fit.losses import dice_loss, segmentation_loss
from train.fit.trainer import fit
from train.runs import load_member, read_run

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
    settings: dict[str, Any] = {
        "architecture": "unet",
        "encoder": "tu-test_resnet",
        "options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
        "input_size": (48, 64),
        "epochs": 2,
        "batch_size": 1,
        "seed": 4,
        **changes,
    }
    return fit(dataset, out=out, **settings)


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


def kill_after_an_epoch(dataset: Path, out: Path) -> None:
    command = [sys.executable, "-m", "train", "fit", str(dataset), "-o", str(out), *PSPNET]
    command += ["--epochs", str(EPOCHS), "--batch", "2", "--seed", "4"]
    process = subprocess.Popen(
        command,
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
        ({"epochs": 0}, "epochs is 0; expected more than 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**80}, "expected 0 to 2147483647"),
        ({"input_size": (50, 64)}, "expected multiples of 8"),
        ({"input_size": (48, 96)}, "would be distorted 1.50 times"),
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
    assert "Example: python -m train fit" in done.stdout
    assert time.monotonic() - began < 10


def test_an_epoch_draws_every_image_once_in_its_own_order():
    orders = []
    for epoch in (0, 1):
        shuffle = Shuffle(50, seed=9, epoch=epoch)
        draws = list(shuffle)
        assert {draw.epoch for draw in draws} == {epoch}
        assert sorted(draw.item for draw in draws) == list(range(50))
        assert list(shuffle) == draws
        orders.append([draw.item for draw in draws])
    assert orders[0] != orders[1]


def test_batches_are_a_function_of_seed_and_epoch(tiny_dataset: Dataset):
    def first_batch(epoch: int, workers: int = 0) -> torch.Tensor:
        samples = Resized(tiny_dataset, tiny_dataset.of("all"), (24, 32))
        batches = training_batches(samples, seed=1, epoch=epoch, batch_size=4, workers=workers)
        frames, masks = next(iter(batches))
        assert frames.shape == (4, 3, 24, 32)
        assert masks.shape == (4, 24, 32)
        return frames

    assert torch.equal(first_batch(3), first_batch(3))
    assert torch.equal(first_batch(3), first_batch(3, workers=1))
    assert not torch.equal(first_batch(3), first_batch(4))


def test_frames_are_averaged_down_and_masks_keep_their_values(tiny_dataset: Dataset):
    frame, mask = Resized(tiny_dataset, tiny_dataset.items, (24, 32)).read(0)
    native = cv2.imread(str(tiny_dataset.items[0].image))
    assert np.abs(frame - native.reshape(24, 2, 32, 2, 3).mean((1, 3))).max() <= 0.5
    assert set(np.unique(mask)) <= {0, 1, 2, 255}


def test_the_mask_follows_the_frame():
    """A frame painted with its own mask stays so, up to the blur of bilinear edges."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (6, 8)), np.ones((16, 16))).astype(np.uint8)
    frame = np.repeat(mask[:, :, None] * 200, 3, axis=2)
    flips = 0
    for seed in range(40):
        changed, labels = augment(frame, mask, np.random.default_rng(seed))
        valid = labels != 255
        light = changed.mean(2)[valid]
        middle = (light.max() + light.min()) / 2
        agree = ((light > middle) == labels[valid]).mean()
        assert agree > 0.93, seed
        assert valid.mean() > 0.6
        flips += not np.array_equal(labels, mask)
    assert flips > 20


def test_augmentation_leaves_its_inputs_alone():
    rng = np.random.default_rng(0)
    frame, mask = rng.integers(0, 255, (32, 48, 3), np.uint8), np.zeros((32, 48), np.uint8)
    before = frame.copy()
    for seed in range(20):
        changed, labels = augment(frame, mask, np.random.default_rng(seed))
        assert (changed.dtype, changed.shape) == (np.uint8, frame.shape)
        assert (labels.dtype, labels.shape) == (np.uint8, mask.shape)
    assert np.array_equal(frame, before)


def test_dice_is_that_of_a_hand_calculation():
    """Two classes, four valid pixels, P(1) = .9 .6 .2 .3, truth 1 1 0 1, a fifth is ignored.

    Class 1: 2 * 1.8 / (2.0 + 3); class 0: 2 * .8 / (2.0 + 1); both + 1 above and below.
    """
    chance = torch.tensor([0.9, 0.6, 0.2, 0.3, 0.99])
    logits = torch.stack((1 - chance, chance)).log()[None, :, None, :]
    masks = torch.tensor([[[1, 1, 0, 1, 255]]])
    expected = 1 - ((2 * 1.8 + 1) / (2.0 + 3 + 1) + (2 * 0.8 + 1) / (2.0 + 1 + 1)) / 2
    assert dice_loss(logits, masks).item() == pytest.approx(expected, abs=1e-6)


def test_cross_entropy_is_a_mean_over_valid_pixels():
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, 0] = 255
    loss = segmentation_loss(logits, masks) - dice_loss(logits, masks)
    expected = functional.cross_entropy(logits, masks, ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_ignored_pixels_cannot_change_the_loss():
    logits, masks = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    masks[0, :2] = 255
    other = logits.clone()
    other[:, :, :2] += torch.randn(1, 3, 2, 4)
    assert torch.allclose(segmentation_loss(logits, masks), segmentation_loss(other, masks))


def test_a_batch_without_a_valid_pixel_costs_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_draws_are_plain_values():
    assert Draw(epoch=1, item=2) == (1, 2)

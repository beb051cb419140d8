"""Predictors of runs and ensembles, beside the networks asked one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.special import softmax

from edge.contract.errors import ConfigError
from edge.engine import resize
from train.data.dataset import read_sample
from train.ensembles import Weighing, write_ensemble
from train.predict import EnsemblePredictor, open_predictor
from train.runs import Run, load_member

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.frames import Pixels
    from train.data.dataset import Dataset


@pytest.fixture
def frame(tiny_dataset: Dataset) -> Pixels:
    return read_sample(tiny_dataset, tiny_dataset.items[0]).frame


def logits_of(run: Run, frame: Pixels) -> np.ndarray:
    member = load_member(run)
    pixels = torch.tensor(frame.transpose(2, 0, 1)[None].copy()).float()
    with torch.no_grad():
        return member(pixels)[0].numpy().astype(np.float64)


def test_an_ensemble_decides_by_the_weighted_mean_of_calibrated_probabilities(
    tiny_run: Run, tiny_pspnet: Run, tmp_path: Path, frame: Pixels
):
    weighing = Weighing(
        weights=(0.8, 0.2), temperatures=(0.3, 4.0), how_weighed="fitted", how_calibrated="fitted"
    )
    runs = [tiny_run, tiny_pspnet]
    write_ensemble(tmp_path / "e.toml", runs, weighing)
    first, second = (logits_of(run, frame) for run in runs)
    expected = 0.8 * softmax(first / 0.3, axis=0) + 0.2 * softmax(second / 4.0, axis=0)
    with open_predictor(tmp_path / "e.toml") as predictor:
        found = predictor.segment(frame)
    assert predictor.name == "e"
    assert found.mask.dtype == np.uint8
    assert found.confidence is not None
    assert found.confidence.dtype == np.float32
    assert found.confidence == pytest.approx(expected.max(axis=0), abs=1e-4)
    best = np.sort(expected, axis=0)
    clear = best[-1] - best[-2] > 1e-4
    assert clear.mean() > 0.9
    assert np.array_equal(found.mask[clear], expected.argmax(axis=0)[clear])


def test_a_run_alone_says_its_own_softmax(tiny_run: Run, frame: Pixels):
    expected = softmax(logits_of(tiny_run, frame), axis=0)
    with open_predictor(tiny_run.folder) as predictor:
        found = predictor.segment(frame)
    assert predictor.name == "run"
    assert found.confidence == pytest.approx(expected.max(axis=0), abs=1e-4)


def test_frames_of_any_size_are_brought_to_the_runs_size_once(tiny_run: Run, frame: Pixels):
    big = np.repeat(np.repeat(frame, 3, axis=0), 3, axis=1)
    with open_predictor(tiny_run.folder) as predictor:
        assert np.array_equal(
            predictor.segment(big).mask, predictor.segment(resize(big, (48, 64))).mask
        )
        with pytest.raises(ConfigError, match="distorted"):
            predictor.segment(frame[:20])


def test_a_member_is_loaded_once(tiny_run: Run, frame: Pixels, monkeypatch: pytest.MonkeyPatch):
    loaded: list[Run] = []

    def load(run: Run) -> torch.nn.Module:
        loaded.append(run)
        return load_member(run)

    monkeypatch.setattr("train.predict.load_member", load)
    predictor = EnsemblePredictor([tiny_run], name="a", weights=[1.0], temperatures=[1.0])
    predictor.segment(frame)
    predictor.segment(frame)
    assert loaded == [tiny_run]


class KeepsItsPlace(torch.nn.Module):
    """Stands in for a member; answers only where frames and parameters are in one place."""

    kind = "surfaces"

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(3))
        self.seen: list[str] = []

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        self.seen += [frames.device.type, self.bias.device.type]
        return torch.zeros((len(frames), 3, *frames.shape[-2:]))


def test_members_and_frames_go_where_the_predictor_works(
    tiny_run: Run, frame: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """A place without memory, which every machine has, stands in for the GPU."""
    member = KeepsItsPlace()
    monkeypatch.setattr("train.predict.load_member", lambda _: member)
    monkeypatch.setattr("train.predict.quickest_device", lambda: torch.device("meta"))
    EnsemblePredictor([tiny_run], name="a", weights=[1.0], temperatures=[1.0]).segment(frame)
    assert member.seen == ["meta", "meta"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA or ROCm")
def test_a_gpu_says_what_the_cpu_says(
    tiny_run: Run, tiny_pspnet: Run, frame: Pixels, monkeypatch: pytest.MonkeyPatch
):
    def predictor() -> EnsemblePredictor:
        return EnsemblePredictor(
            [tiny_run, tiny_pspnet], name="a", weights=[0.4, 0.6], temperatures=[1.0, 2.0]
        )

    found, outputs = predictor().segment(frame), predictor().outputs(frame)
    assert {output.device.type for output in outputs} == {"cpu"}
    monkeypatch.setattr("train.predict.quickest_device", lambda: torch.device("cpu"))
    assert found.confidence == pytest.approx(predictor().segment(frame).confidence, abs=1e-2)


class SeesFloes(torch.nn.Module):
    """Stands in for a member that sees floes: the same logit of ice everywhere."""

    kind = "floes"

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.full((len(frames), 1, *frames.shape[-2:]), self.logit)


@pytest.mark.parametrize(("logit", "decided", "sure"), [(-2.0, 1, 0.8808), (1.0, 2, 0.7311)])
def test_a_member_of_floes_read_alone_calls_the_rest_water(
    tiny_run: Run,
    frame: Pixels,
    monkeypatch: pytest.MonkeyPatch,
    logit: float,
    decided: int,
    sure: float,
):
    monkeypatch.setattr("train.predict.load_member", lambda _: SeesFloes(logit))
    with open_predictor(tiny_run.folder) as predictor:
        found = predictor.segment(frame)
    assert (found.mask == decided).all()
    assert found.confidence == pytest.approx(np.full((48, 64), sure), abs=1e-4)


def test_a_member_of_floes_borrows_what_it_does_not_see(
    tiny_run: Run, tiny_pspnet: Run, frame: Pixels, monkeypatch: pytest.MonkeyPatch
):
    """Sky, water, ice: what is not ice is split as the other member splits it."""
    surfaces = softmax(logits_of(tiny_run, frame), axis=0)
    ice = 1 / (1 + np.exp(-0.5))
    borrowed = (1 - ice) * surfaces[:2] / surfaces[:2].sum(axis=0)
    floes = np.concatenate([borrowed, np.full((1, 48, 64), ice)])
    expected = 0.4 * surfaces + 0.6 * floes
    loaded = {"run": load_member(tiny_run), "pspnet": SeesFloes(1.0)}
    monkeypatch.setattr("train.predict.load_member", lambda run: loaded[run.name])
    predictor = EnsemblePredictor(
        [tiny_run, tiny_pspnet], name="a", weights=[0.4, 0.6], temperatures=[1.0, 2.0]
    )
    found = predictor.segment(frame)
    assert found.confidence == pytest.approx(expected.max(axis=0), abs=1e-4)

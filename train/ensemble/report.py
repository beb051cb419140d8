"""What was found about an ensemble, and which weights and temperatures it gets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from train.ensemble.figures import Diversity, Figures, diversity_of, figures_of
from train.ensemble.weigh import candidates, left_out_losses
from train.ensembles import HowCalibrated, HowWeighed, Weighing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from train.data.dataset import Progress
    from train.ensemble.pixels import ValidationPixels
    from train.ensemble.weigh import Choice

_DIGITS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberFigures:
    """One member alone, nothing borrowed: as it was trained, and at its own temperature.

    left_out_nll: mean NLL of images that the temperature was not fitted to; None where there was
    but one image.
    """

    name: str
    temperature: float
    as_trained: Figures
    calibrated: Figures
    left_out_nll: float | None

    @property
    def nll(self) -> float:
        """The best it does on images that nothing was fitted to: as trained, or left out."""
        known = [self.as_trained.nll, self.left_out_nll]
        return min(nll for nll in known if nll is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An ensemble that could be chosen.

    left_out_nll: mean NLL of images that its fit did not see; None where there was but one image.
    """

    weighing: Weighing
    figures: Figures
    left_out_nll: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that was measured on validation pixels, and the choice."""

    images: int
    pixels: int
    members: tuple[MemberFigures, ...]
    candidates: dict[Choice, Candidate]
    choice: Choice
    diversity: Diversity

    @property
    def chosen(self) -> Candidate:
        """What the ensemble gets."""
        return self.candidates[self.choice]

    @property
    def best_member(self) -> MemberFigures:
        """The one that scores best alone on images that nothing was fitted to."""
        return min(self.members, key=lambda member: member.nll)

    @property
    def gain(self) -> float:
        """By how much less NLL the ensemble has than its best member alone; below 0 where more.

        Both on images left out (of one image: nothing is fitted then). The choice was made on
        them too, of four ensembles and of two temperatures for each member.
        """
        return self.best_member.nll - self._chosen_nll

    @property
    def _chosen_nll(self) -> float:
        left_out = self.chosen.left_out_nll
        return self.chosen.figures.nll if left_out is None else left_out

    def as_plain(self) -> dict[str, Any]:
        """Return it as plain values for TOML and JSON; numbers rounded to six digits."""
        plain: dict[str, Any] = _rounded(
            {
                "best_member": self.best_member.name,
                "gain_over_best_member": self.gain,
                "disagreement": self.diversity.disagreement,
                "error_correlation": self.diversity.error_correlation,
                "verdict": self.verdict(),
                "candidates": [
                    {
                        "weighed": weighed,
                        "calibrated": calibrated,
                        "chosen": (weighed, calibrated) == self.choice,
                        "left_out_nll": candidate.left_out_nll,
                        **asdict(candidate.figures),
                    }
                    for (weighed, calibrated), candidate in self.candidates.items()
                ],
                "members": [asdict(member) for member in self.members],
                "pairs": [asdict(pair) for pair in self.diversity.pairs],
            }
        )
        return plain

    def verdict(self) -> str:
        """Say which weights and temperatures were chosen, why, and what the ensemble is worth."""
        weighed, calibrated = self.choice
        losses = {choice: one.left_out_nll for choice, one in self.candidates.items()}
        if losses[self.choice] is None:
            return (
                "one image alone cannot be left out: equal weights, no temperatures"
                f"{self._beside_the_best('on it')}"
            )
        return (
            f"{_judged('temperatures', losses, ('equal', 'none'), ('equal', 'fitted'))}; "
            f"{_judged('weights', losses, ('equal', calibrated), ('fitted', calibrated))}: "
            f"{weighed} weights, "
            f"{'fitted' if calibrated == 'fitted' else 'no'} temperatures"
            f"{self._beside_the_best('on images left out')}"
        )

    def _beside_the_best(self, where: str) -> str:
        if len(self.members) == 1:
            return ""
        best = self.best_member
        outcome = f"beats its best member alone by {self.gain:.4f}"
        if self.gain <= 0:
            outcome = "does not beat its best member alone"
        return (
            f"; {where} the ensemble {outcome} (NLL {self._chosen_nll:.4f} against {best.nll:.4f} "
            f"of {best.name})"
        )

    def table(self) -> Table:
        """Return a table for people: members alone, then ensembles; the chosen one in bold."""
        title = f"{self.images} validation images, {self.pixels} of their pixels"
        table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True)
        table.add_column("")
        for header in ("weight", "T", "NLL", "left out", "Brier", "ECE", "mIoU"):
            table.add_column(header, justify="right", no_wrap=True)
        weighing = self.chosen.weighing
        for member, weight in zip(self.members, weighing.weights, strict=True):
            table.add_row(member.name, *_cells(f"{weight:.3f}", 1.0, None, member.as_trained))
            cells = _cells("", member.temperature, member.left_out_nll, member.calibrated)
            table.add_row("  with T", *cells)
        table.add_section()
        for (weighed, calibrated), one in self.candidates.items():
            name = f"{weighed} weights{', T' if calibrated == 'fitted' else ''}"
            bold = "bold" if (weighed, calibrated) == self.choice else ""
            table.add_row(name, *_cells("", None, one.left_out_nll, one.figures), style=bold)
        return table


def choose(
    pixels: ValidationPixels, names: Sequence[str], *, progress: Progress | None = None
) -> Report:
    """Fit, leave images out, and choose.

    Fitted temperatures are taken only where, at equal weights, they score better than none on
    images left out; then fitted weights only where they score better there than equal ones.
    """
    shares = pixels.shares()
    losses = left_out_losses(pixels, progress=progress)
    fits = candidates(pixels, shares)
    found = {
        choice: Candidate(
            weighing=Weighing(
                weights=fit.weights,
                temperatures=fit.temperatures,
                how_weighed=choice[0],
                how_calibrated=choice[1],
            ),
            figures=figures_of(pixels.mixture(fit.weights, fit.temperatures), pixels.truth, shares),
            left_out_nll=losses.ensembles.get(choice),
        )
        for choice, fit in fits.items()
    }
    alone = [pixels.alone(member, 1.0) for member in range(len(names))]
    return Report(
        images=len(pixels.images),
        pixels=len(pixels.truth),
        members=tuple(
            MemberFigures(
                name=name,
                temperature=temperature,
                as_trained=figures_of(alone[member], pixels.truth, shares),
                calibrated=figures_of(pixels.alone(member, temperature), pixels.truth, shares),
                left_out_nll=losses.members[member] if losses.members else None,
            )
            for member, (name, temperature) in enumerate(
                zip(names, fits["equal", "fitted"].temperatures, strict=True)
            )
        ),
        candidates=found,
        choice=best_choice(losses.ensembles),
        diversity=diversity_of(names, [one.argmax(dim=0) for one in alone], pixels.truth),
    )


def best_choice(losses: Mapping[Choice, float]) -> Choice:
    """Return the choice that images left out speak for; equal and none where they are silent."""
    if not losses:
        return "equal", "none"
    better = losses["equal", "fitted"] < losses["equal", "none"]
    calibrated: HowCalibrated = "fitted" if better else "none"
    better = losses["fitted", calibrated] < losses["equal", calibrated]
    weighed: HowWeighed = "fitted" if better else "equal"
    return weighed, calibrated


def _judged(what: str, losses: Mapping[Choice, float | None], plain: Choice, fitted: Choice) -> str:
    without, with_fit = losses[plain] or 0.0, losses[fitted] or 0.0
    outcome = "do better" if with_fit < without else "do no better"
    than = "equal ones" if what == "weights" else "none"
    return (
        f"fitted {what} {outcome} than {than} on images left out "
        f"(NLL {with_fit:.4f} against {without:.4f})"
    )


def _cells(
    weight: str, temperature: float | None, left_out: float | None, figures: Figures
) -> tuple[str, ...]:
    return (
        weight,
        "" if temperature is None else f"{temperature:.2f}",
        f"{figures.nll:.4f}",
        "" if left_out is None else f"{left_out:.4f}",
        f"{figures.brier:.3f}",
        f"{figures.ece:.3f}",
        f"{figures.miou:.3f}",
    )


def _rounded(value: Any) -> Any:  # noqa: ANN401 - plain values of any depth
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value

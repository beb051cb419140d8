"""Weather, light and camera faults that torchvision.transforms.v2 lacks; they change frames alone.

Frames are uint8 ``[3, H, W]`` RGB in and out. Chance comes from torch's global generator, as with
v2's own transforms. Lengths are shares of the frame, so that any size gives the same picture.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

if TYPE_CHECKING:
    from torch import Tensor

Range = tuple[float, float]
WHITE = 255.0
DIMMEST = 8.0


class Weather(v2.Transform):  # type: ignore[misc]  # torchvision ships no types
    """A change of the frame; masks pass through."""

    def transform(self, inpt: Any, _params: dict[str, Any]) -> Any:  # noqa: ANN401 - v2's signature
        """Return a changed image, anything else as it is."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap(self.change(inpt.as_subclass(torch.Tensor)), like=inpt)

    @abstractmethod
    def change(self, frame: Tensor) -> Tensor:
        """Return a changed copy of a frame uint8 ``[3, H, W]`` RGB."""


class Tone(Weather):
    """Gamma and white balance, as one table per channel. Both are drawn on a log scale.

    gamma and balance: the furthest from 1, as a natural logarithm; balance: of red and of blue.
    """

    def __init__(self, gamma: float = 0.4, balance: float = 0.12) -> None:
        super().__init__()
        self.gamma = gamma
        self.balance = balance

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame under another curve."""
        gamma = math.exp(_draw((-self.gamma, self.gamma)))
        curve = torch.linspace(0, 1, 256).pow(gamma) * WHITE
        rows = []
        for channel, reach in zip(frame, (self.balance, 0.0, self.balance), strict=True):
            table = _bytes(curve * math.exp(_draw((-reach, reach))))
            rows.append(table.index_select(0, channel.flatten().int()))
        return torch.stack(rows).view(frame.shape)


class LightField(Weather):
    """Uneven light: a smooth gain over the frame, drawn on a log scale.

    gain: of the darkest and the brightest place there can be; cells: how many bumps across.
    """

    def __init__(self, gain: Range = (0.25, 2.0), cells: int = 4) -> None:
        super().__init__()
        self.gain = gain
        self.cells = cells

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame under clouds' shadows and sunny spots."""
        low, high = math.log(self.gain[0]), math.log(self.gain[1])
        field = low + (high - low) * _smooth(self.cells, frame)
        return _bytes(frame * (field * _draw((0.4, 1.0))).exp())


class Searchlight(Weather):
    """Night: a cone of light, darkness around it.

    ambient: gain of what is not lit, which stays above ``DIMMEST`` in the mean, so that a frame of
    the night does not turn black; beam: what the cone adds to it; radius: of the cone, in frame
    heights. A cone wider than the frame is a lens's vignette.
    """

    def __init__(
        self, ambient: Range = (0.03, 0.3), beam: Range = (0.6, 2.5), radius: Range = (0.2, 1.0)
    ) -> None:
        super().__init__()
        self.ambient = ambient
        self.beam = beam
        self.radius = radius

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame lit by a lamp, which falls off as a Gaussian of random steepness."""
        ambient, beam = _draw_log(self.ambient), _draw_log(self.beam)
        ambient = max(ambient, min(1.0, DIMMEST / max(1.0, float(frame.float().mean()))))
        falloff = _spot(frame, radius=_draw(self.radius), aspect=_draw_log((0.5, 2.0)))
        lit = falloff.pow(_draw_log((0.5, 2.0)))
        return _bytes(frame * (ambient + beam * lit))


class Glare(Weather):
    """A low sun on water, or a lamp into the lens: a bright patch that glitters, over a veil.

    strength: of the patch, 1 = white; veil: of the haze over the whole frame.
    """

    def __init__(self, strength: Range = (0.3, 1.2), veil: Range = (0.0, 0.15)) -> None:
        super().__init__()
        self.strength = strength
        self.veil = veil

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame with light added, a little warm."""
        patch = _spot(frame, radius=_draw((0.1, 0.6)), aspect=_draw_log((0.25, 1.5)))
        glitter = torch.rand(frame.shape[1:]).add_(_draw((0.2, 2.0))).clamp_(max=1)
        light = _draw(self.strength) * patch * glitter + _draw(self.veil)
        warm = torch.full((3,), _draw((0.85, 1.0))).pow(torch.arange(3))[:, None, None]
        return _bytes(frame + WHITE * light * warm)


class Fog(Weather):
    """Fog on a plane seen from a mast: thicker upwards, in patches.

    Koschmieder's law: frame * t + fog * (1 - t), t = exp(-density * distance).
    density: at the frame's upper edge.
    """

    def __init__(self, density: Range = (0.3, 2.5)) -> None:
        super().__init__()
        self.density = density

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame through fog of a random grey."""
        distance = torch.linspace(1, 0, frame.shape[1]).pow(_draw((0.5, 2.0)))[:, None]
        patches = 0.5 + _smooth(3, frame)
        through = (-_draw_log(self.density) * distance * patches).exp()
        grey = _draw((100.0, 235.0))
        return _bytes(frame * through + grey * (1 - through))


class Snow(Weather):
    """Falling snow: bright streaks in one direction, up to 60 degrees from the vertical.

    flakes: how many for each thousand pixels; length: of a streak, in pixels.
    """

    def __init__(self, flakes: Range = (0.5, 6.0), length: tuple[int, int] = (2, 9)) -> None:
        super().__init__()
        self.flakes = flakes
        self.length = length

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame behind flakes of a random brightness."""
        height, width = frame.shape[1:]
        seeds = torch.rand(height, width) < _draw_log(self.flakes) / 1000
        path = _line(_draw_whole(self.length), _draw((math.pi / 6, math.pi * 5 / 6)))
        streaks = _smear(seeds.float()[None], path).clamp_(max=1)
        cover = streaks * _draw((0.4, 0.95))
        return _bytes(frame + (_draw((170.0, 255.0)) - frame) * cover)


class MotionBlur(Weather):
    """A mast that moves while the shutter is open. length: of the path, in pixels."""

    def __init__(self, length: tuple[int, int] = (3, 9)) -> None:
        super().__init__()
        self.length = length

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame averaged along a random line."""
        path = _line(_draw_whole(self.length), _draw((0.0, math.pi)))
        return _bytes(_smear(frame.float(), path) / len(path))


class Jpeg(Weather):
    """A camera that saves room. quality: of the JPEG, 0 to 100.

    v2's own goes through torchvision's encoder, which is on its way out.
    """

    def __init__(self, quality: tuple[int, int] = (25, 90)) -> None:
        super().__init__()
        self.quality = quality

    def change(self, frame: Tensor) -> Tensor:
        """Return the frame with a JPEG's traces."""
        bgr = np.ascontiguousarray(frame.flip(0).permute(1, 2, 0).numpy())
        flags = (cv2.IMWRITE_JPEG_QUALITY, _draw_whole(self.quality))
        decoded = cv2.imdecode(cv2.imencode(".jpg", bgr, flags)[1], cv2.IMREAD_COLOR)
        return torch.from_numpy(np.asarray(decoded)).permute(2, 0, 1).flip(0)


def _draw(between: Range) -> float:
    return between[0] + (between[1] - between[0]) * float(torch.rand(()))


def _draw_log(between: Range) -> float:
    return math.exp(_draw((math.log(between[0]), math.log(between[1]))))


def _draw_whole(between: tuple[int, int]) -> int:
    return int(torch.randint(between[0], between[1] + 1, ()))


def _bytes(frame: Tensor) -> Tensor:
    return frame.add(0.5).clamp_(0, WHITE).to(torch.uint8)


def _smooth(cells: int, frame: Tensor) -> Tensor:
    """Return float32 ``[H, W]`` of 0..1 that varies slowly: ``cells`` values across."""
    coarse = torch.rand(1, 1, cells, cells)
    fine = functional.interpolate(coarse, frame.shape[1:], mode="bicubic", align_corners=False)
    return fine[0, 0].clamp_(0, 1)


def _spot(frame: Tensor, *, radius: float, aspect: float) -> Tensor:
    """Return float32 ``[H, W]``: a Gaussian, 1 in the middle of a random place in the frame.

    radius: its sigma down the frame, in heights; aspect: how much wider than high.
    """
    height, width = frame.shape[1:]
    rows = torch.arange(height).sub(_draw((0.1, 0.9)) * height).div(radius * height)
    columns = torch.arange(width).sub(_draw((0.1, 0.9)) * width).div(radius * aspect * height)
    return rows.square().mul(-0.5).exp()[:, None] * columns.square().mul(-0.5).exp()


def _line(length: int, angle: float) -> list[tuple[int, int]]:
    """Return the (row, column) offsets of a line through (0, 0): ``length`` pixels, made odd."""
    half = length // 2
    down, right = math.sin(angle), math.cos(angle)
    longer = max(abs(down), abs(right))
    steps = range(-half, half + 1)
    return [(round(step * down / longer), round(step * right / longer)) for step in steps]


def _smear(planes: Tensor, path: list[tuple[int, int]]) -> Tensor:
    """Return the sum of float32 planes ``[N, H, W]`` moved along a path, mirrored at the border.

    Where the path reaches further than the frame does, it is held to the last row or column.
    """
    height, width = planes.shape[1:]
    down = min(height - 1, max(abs(row) for row, _ in path))
    across = min(width - 1, max(abs(column) for _, column in path))
    padded = functional.pad(planes, (across, across, down, down), mode="reflect")
    total = torch.zeros_like(planes)
    for row, column in path:
        top = down + max(-down, min(down, row))
        left = across + max(-across, min(across, column))
        total += padded[:, top : top + height, left : left + width]
    return total

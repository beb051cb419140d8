"""Parameters that a member starts from: an encoder's from a library or a file, or another run's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from edge.contract.errors import ConfigError
from train.models.pretrained import address_of, fetch, is_path, normalisation_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from train.models.members import Member

NONE = "none"
SUFFIX = ".safetensors"

__all__ = [
    "EncoderParameters",
    "load_encoder_parameters",
    "normalisation_of",
    "take_parameters",
]

_SHOWN = 3
_PREFIXES = ("network.encoder.", "network.backbone.body.", "encoder.")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderParameters:
    """What an encoder starts from. file: where it was read; sha256: of that file; "" for none."""

    source: str
    file: str = ""
    sha256: str = ""
    tensors: int = 0

    def describe(self) -> str:
        """Return one line for ``run.toml``: what was asked for, and the file's hash."""
        return f"{self.source} (sha256 {self.sha256})" if self.sha256 else self.source


def load_encoder_parameters(member: Member, source: str) -> EncoderParameters:
    """Give a member's encoder the parameters of ``source``, in place; all of them or none.

    source: ``none``; a name that the library has parameters under, such as ``imagenet``, from this
    machine's cache or the network; or the path of a .safetensors file with the names of the
    encoder, of timm, or of a whole run. What else the file holds (classifier, decoder) is left.

    Raises ConfigError: an unknown name, a file that cannot be had or read, or one that lacks a
    parameter of the encoder or has it in another shape.
    """
    if source == NONE:
        return EncoderParameters(source=source)
    if is_path(source):
        path, where = _require_safetensors(Path(source)), source
    else:
        address = address_of(member.encoder, source)
        path, where = fetch(address), address.url
    raw, tensors = _read(path)
    found = _matched(member, tensors, where=where)
    # Past the encoder's own load_state_dict, which renames what has its right name by now.
    nn.Module.load_state_dict(member.parts()["encoder"], found, strict=False)
    return EncoderParameters(
        source=source,
        file=where,
        sha256=hashlib.sha256(raw).hexdigest(),
        tensors=len(found),
    )


def take_parameters(
    member: Member, tensors: Mapping[str, Tensor], *, same_classes: bool
) -> tuple[str, ...]:
    """Give a member another run's parameters (its state dict), in place; all of them or none.

    The head's are taken only where the classes are the same (``same_outputs``). Returns the names
    of the parts that keep their random parameters. Raises ConfigError where a tensor of the rest
    is missing, has another shape, or belongs to no part of this member.
    """
    own = member.state_dict()
    left = set() if same_classes else set(_names_in(member, member.parts()["head"]))
    wanted = {name: value for name, value in own.items() if name not in left}
    given = {name: value for name, value in tensors.items() if name not in left}
    problems = [
        *_defects(wanted, given),
        *(f"{name} is not one of its" for name in given if name not in own),
    ]
    if problems:
        raise ConfigError(
            f"not the parameters of {member.architecture} with {member.encoder}: "
            f"{_shortened(problems)}",
            expected="a run of the same architecture, encoder and options",
        )
    member.load_state_dict(given, strict=False)
    return ("head",) if left else ()


def _require_safetensors(path: Path) -> Path:
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"{path}: not a {SUFFIX} file",
            expected=f"{SUFFIX}: a pickle can run code while it is read",
            then=f"Where you trust it, convert it: {conversion_of(path)}",
        )
    return path


def conversion_of(path: Path) -> str:
    """Return the command that turns a pickled state dict into a .safetensors file beside it."""
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone() for k, v in torch.load({str(path)!r}, map_location='cpu', "
        f'weights_only=True).items()}}, {str(path.with_suffix(SUFFIX))!r})"'
    )


def _read(path: Path) -> tuple[bytes, dict[str, Tensor]]:
    import safetensors.torch  # noqa: PLC0415 - only where parameters are read
    from safetensors import SafetensorError  # noqa: PLC0415 - with it

    try:
        raw = path.read_bytes()
        return raw, safetensors.torch.load(raw)
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror})") from None
    except SafetensorError as problem:
        raise ConfigError(f"{path}: not a {SUFFIX} file ({problem})") from None


def _matched(member: Member, tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Return the file's tensors under the encoder's own names."""
    wanted = member.parts()["encoder"].state_dict()
    under = {_plain(name): value for name, value in _of_encoder(tensors).items()}
    found = {name: under[_plain(name)] for name in wanted if _plain(name) in under}
    needed = {name: v for name, v in wanted.items() if name in found or _COUNTER not in name}
    problems = list(_defects(needed, found))
    if problems:
        raise ConfigError(
            f"{where}: not the parameters of encoder {member.encoder}: {len(problems)} of "
            f"{len(needed)} do not fit: {_shortened(problems)}",
            then="Nothing was taken from it.",
        )
    return found


def _of_encoder(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            return {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
    return tensors


def _plain(name: str) -> str:
    """Return what a parameter is called everywhere.

    segmentation-models-pytorch puts timm's under ``model.``; timm writes ``stages.0.`` of a whole
    model as ``stages_0.`` where it yields features; torchvision has MobileNet's under
    ``features.``, which Mask R-CNN takes off, and once wrote DenseNet's ``norm1.`` as ``norm.1.``.
    """
    while name.startswith(("model.", "features.")):
        name = name.split(".", 1)[1]
    for kind in ("norm", "relu", "conv"):
        if ".denselayer" in name:
            name = name.replace(f".{kind}.1.", f".{kind}1.").replace(f".{kind}.2.", f".{kind}2.")
    return name.replace("_", ".")


def _defects(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterable[str]:
    for name, value in wanted.items():
        if name not in given:
            yield f"{name} is missing"
        elif given[name].shape != value.shape:
            yield f"{name} is {tuple(given[name].shape)}, not {tuple(value.shape)}"


def _shortened(problems: list[str]) -> str:
    return ", ".join(problems[:_SHOWN]) + (", …" if len(problems) > _SHOWN else "")


def _names_in(member: Member, part: nn.Module) -> Iterable[str]:
    inside = {id(tensor) for tensor in part.state_dict(keep_vars=True).values()}
    return (name for name, one in member.state_dict(keep_vars=True).items() if id(one) in inside)

"""What the libraries offer to start an encoder from: where it lies, and how it saw its pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pydantic import AfterValidator, BaseModel, Field

from edge.contract.boundary import parse, parse_json, read_toml
from edge.contract.errors import ConfigError
from train.models.members import IMAGENET_MEAN, IMAGENET_STD, Triple

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

TIMM = "tu-"
"""How segmentation-models-pytorch begins the names of timm's models."""

FILE = "model.safetensors"
CONFIG = "config.json"
IMAGENET = "imagenet"
RUN = "run.toml"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl")

_PATIENCE_S = 5.0
_OWN_NORMALISATION = ("dpn", "inception", "timm-", "xception")
_BYTE = 255.0

Zero = Annotated[float, Field(ge=0, le=0)]
Above = Annotated[float, Field(gt=0)]


def _positive(triple: Triple) -> Triple:
    if not all(value > 0 and math.isfinite(value) for value in triple):
        message = "expected three numbers above 0"
        raise ValueError(message)
    return triple


class _Normalisation(BaseModel):
    """A ``run.toml``'s: RGB on the scale 0..255."""

    mean: Triple
    std: Annotated[Triple, AfterValidator(_positive)]


class _Settings(_Normalisation):
    """A ``config.json``'s: on the scale of ``input_range``."""

    input_space: str = "RGB"
    input_range: tuple[Zero, Above] = (0, 1)


class _TimmConfig(BaseModel):
    """timm's ``config.json``, which keeps them one level down; other libraries' do not."""

    pretrained_cfg: _Settings | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a library's parameters of an encoder lie on the Hugging Face hub.

    pickle: where else, for the few that are nowhere as .safetensors (repo is "" then).
    """

    encoder: str
    source: str
    repo: str
    revision: str | None = None
    pickle: str = ""

    @property
    def url(self) -> str:
        """The file's address, for a browser."""
        return self.url_of(FILE)

    def url_of(self, file: str) -> str:
        """Return the address of a file beside it."""
        from huggingface_hub import hf_hub_url  # noqa: PLC0415 - only where parameters are named

        return str(hf_hub_url(self.repo, file, revision=self.revision))


def is_path(source: str) -> bool:
    """Tell a file from a library's name: it has a folder, or ends as files of parameters do."""
    return "/" in source or Path(source).suffix in {".safetensors", *PICKLES}


def address_of(encoder: str, source: str) -> Address:
    """Find a library's parameters by name; ConfigError lists the names that this encoder has."""
    offered = addresses(encoder)
    if not offered:
        raise ConfigError(
            f"parameters {source!r} for encoder {encoder}, for which no named ones exist",
            expected="none, or the path of a .safetensors file",
            then="A file that torchvision publishes will do, once converted: given its path, the "
            "refusal says how.",
        )
    if source not in offered:
        raise ConfigError(
            f"unknown parameters {source!r} for encoder {encoder}",
            expected=f"one of {', '.join(['none', *offered])}, or the path of a .safetensors file",
        )
    return offered[source]


def addresses(encoder: str) -> dict[str, Address]:
    """Return all that the library has for an encoder, by name.

    timm's names are its tags; ``imagenet`` is what timm gives where no tag is named.
    """
    if encoder.startswith(TIMM):
        return {
            name: Address(
                encoder=encoder,
                source=name,
                repo=str(settings.hf_hub_id or ""),
                pickle="" if settings.hf_hub_id else str(settings.url),
            )
            for name, settings in _timm_settings(encoder).items()
        }
    from segmentation_models_pytorch.encoders import encoders  # noqa: PLC0415 - loads hundreds

    offered: dict[str, dict[str, str]] = encoders.get(encoder, {}).get("pretrained_settings", {})
    return {
        name: Address(encoder=encoder, source=name, repo=said["repo_id"], revision=said["revision"])
        for name, said in offered.items()
    }


def _timm_settings(encoder: str) -> dict[str, PretrainedCfg]:
    import timm  # noqa: PLC0415 - only where parameters are named
    from timm.models import get_pretrained_cfg  # noqa: PLC0415 - the same

    name = encoder.removeprefix(TIMM)
    if not timm.is_model(name):
        return {}
    architecture = name.split(".")[0]
    tags = [one.split(".", 1)[1] for one in timm.list_pretrained(f"{architecture}.*")]
    found = {IMAGENET: get_pretrained_cfg(name)}
    found |= {tag: get_pretrained_cfg(f"{architecture}.{tag}") for tag in tags}
    return {key: one for key, one in found.items() if one is not None and one.has_weights}


def fetch(address: Address, file: str = FILE) -> Path:
    """Return a file of the library's from this machine's cache, else from the network.

    Raises ConfigError, within seconds where there is no network: what to bring, and from where.
    """
    from huggingface_hub import (  # noqa: PLC0415 - only where parameters are named
        constants,
        hf_hub_download,
    )

    if not address.repo:
        raise ConfigError(
            f"timm has the parameters of {address.encoder} only as a pickle, at {address.pickle}",
            expected="a .safetensors file",
            then="Bring that file and give its path: the refusal says how to convert it.",
        )
    place: dict[str, Any] = {
        "repo_id": address.repo,
        "filename": file,
        "revision": address.revision,
    }
    try:
        return Path(hf_hub_download(**place, local_files_only=True))
    except OSError:
        pass  # not in the cache
    try:
        if not constants.HF_HUB_OFFLINE:
            _require_answer(address.url_of(file))
        return Path(hf_hub_download(**place))
    except _network_errors() as problem:
        raise _cannot_be_had(address, problem) from problem


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what a broken network raises: OSError, and the base of the hub client's own errors.

    That base is httpx's or httpx2's HTTPError, as the client's version has it; its ReadTimeout and
    RemoteProtocolError are no OSErrors.
    """
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - only where it is asked

    return (OSError, HTTPException, *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__))


def _require_answer(url: str) -> None:
    """Raise OSError where nobody answers: the hub's own client would try for half a minute."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=_PATIENCE_S):  # noqa: S310 - of the table
            pass
    except HTTPError:
        pass  # an answer; the hub's client says what it means


def _cannot_be_had(address: Address, problem: Exception) -> ConfigError:
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - only for the message

    told = str(problem).strip() or type(problem).__name__
    why = getattr(problem, "reason", None) or told.splitlines()[0]
    return ConfigError(
        f"parameters {address.source!r} of encoder {address.encoder}: not in this machine's cache "
        f"({HF_HUB_CACHE}), and they could not be fetched ({why})",
        expected=f"{FILE} of {address.repo}: {address.url}",
        then=f"Bring that file from a machine with a network, with {address.url_of(CONFIG)} beside "
        "it, and give its path instead of the name.",
    )


def normalisation_of(encoder: str, source: str) -> tuple[Triple, Triple]:
    """Return the mean and deviation that an encoder's parameters were trained with.

    RGB on the scale 0..255, to build the member with; ImageNet's for ``none``. A file's are those
    of the ``run.toml`` or ``config.json`` beside it, else those of the encoder's usual parameters.

    Raises ConfigError: as ``address_of`` and ``fetch``; a wrong config; parameters for BGR.
    """
    if source == "none":
        return IMAGENET_MEAN, IMAGENET_STD
    if not is_path(source):
        address = address_of(encoder, source)
        if encoder.startswith(TIMM):
            return _of_timm(_timm_settings(encoder)[source], encoder)
        return _of_config(fetch(address, CONFIG), encoder)
    return _beside(Path(source), encoder)


def _beside(file: Path, encoder: str) -> tuple[Triple, Triple]:
    folder = file.parent
    if (folder / RUN).is_file():
        raw = read_toml(folder / RUN, what="a run, as fit writes it")
        said = parse(_Normalisation, raw, where=str(folder / RUN))
        return said.mean, said.std
    if (folder / CONFIG).is_file():
        return _of_config(folder / CONFIG, encoder)
    if encoder.startswith(TIMM):
        usual = _timm_settings(encoder).get(IMAGENET)
        return _of_timm(usual, encoder) if usual else (IMAGENET_MEAN, IMAGENET_STD)
    if encoder.startswith(_OWN_NORMALISATION):
        raise ConfigError(
            f"{file}: no {CONFIG} beside it; parameters of {encoder} are not always trained with "
            "ImageNet's mean and deviation",
            expected=f"the {CONFIG} that it was published with, in the same folder",
        )
    return IMAGENET_MEAN, IMAGENET_STD


def _of_timm(settings: PretrainedCfg, encoder: str) -> tuple[Triple, Triple]:
    said = {"mean": settings.mean, "std": settings.std}
    return _on_bytes(parse(_Settings, said, where=f"timm's settings of {encoder}"), encoder)


def _of_config(path: Path, encoder: str) -> tuple[Triple, Triple]:
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read ({problem.strerror})") from None
    outer = parse_json(_TimmConfig, text, where=str(path), ignore_unknown=True)
    said = outer.pretrained_cfg or parse_json(_Settings, text, where=str(path), ignore_unknown=True)
    return _on_bytes(said, encoder)


def _on_bytes(said: _Settings, encoder: str) -> tuple[Triple, Triple]:
    if said.input_space != "RGB":
        raise ConfigError(
            f"these parameters of {encoder} take {said.input_space} pictures",
            expected="parameters for RGB, which is what members see",
        )
    factor = _BYTE / said.input_range[1]
    return _times(said.mean, factor), _times(said.std, factor)


def _times(triple: Triple, factor: float) -> Triple:
    first, second, third = (value * factor for value in triple)
    return first, second, third

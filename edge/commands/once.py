"""``icecam once``: one picture → table, JSON, mask and overlay."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from edge.camera.folder import read_picture
from edge.commands.wording import headline, percent
from edge.contract.bundle import open_bundle
from edge.contract.files import make_folder, write_atomically
from edge.contract.masks import encode_png
from edge.contract.overlay import render_png
from edge.engine import open_engine
from edge.observation import Origin, read_mask

if TYPE_CHECKING:
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.contract.messages import CoverageMessage

STATION = "local"
CAMERA = "once"
NOT_FROM_AN_OUTBOX = "00000000"


def once(picture: Path, bundle_path: Path, out: Path | None, *, as_json: bool) -> None:
    """Segment a picture; print what was found, and write the files where ``out`` is given."""
    bundle = open_bundle(bundle_path)
    frame = read_picture(picture)
    origin = Origin.of(STATION, CAMERA, frame.captured_at, frame.time_source)
    with open_engine(bundle) as engine:
        segmentation = engine.segment(frame.pixels)
    seen = read_mask(origin, bundle, frame, segmentation)
    png = encode_png(seen.mask)
    message = seen.message(0, NOT_FROM_AN_OUTBOX, hashlib.sha256(png).hexdigest())
    if as_json:
        print(message.model_dump_json(by_alias=True, indent=1))  # noqa: T201 - it is the output
    else:
        Console().print(_table(picture, bundle, message, segmentation.latency_s))
    if out is not None:
        make_folder(out, what="--out")
        overlay = render_png(
            frame.pixels, seen.mask, bundle.manifest.class_map, title=headline(message)
        )
        write_atomically(
            out / "coverage.json", message.model_dump_json(by_alias=True, indent=1).encode()
        )
        write_atomically(out / "mask.png", png)
        write_atomically(out / "overlay.png", overlay)
        Console(stderr=True).print(f"wrote coverage.json, mask.png and overlay.png to {out}")


def _table(picture: Path, bundle: Bundle, message: CoverageMessage, latency_s: float) -> Table:
    table = Table(title=str(picture), show_header=False, title_justify="left")
    table.add_row(
        "captured at", f"{message.captured_at:%Y-%m-%d %H:%M:%S} UTC ({message.time_source})"
    )
    table.add_row("ice, of the water surface seen", percent(message.ice_pixel_fraction))
    table.add_row("SIGRID-3 total concentration", message.sigrid3_ct)
    for member in message.members:
        table.add_row(f"  {member.name} alone", percent(member.ice_pixel_fraction))
    if message.spread is not None:
        table.add_row("spread of the members", f"{message.spread:.3f}")
    for share in message.classes:
        table.add_row(
            f"{share.name} ({share.role})", percent(share.pixel_fraction) + " of the pixels"
        )
    table.add_row("bundle", f"{message.model.bundle}  sha256 {bundle.sha256[:12]}…")
    table.add_row("engine", f"{message.model.engine}, {latency_s * 1000:.0f} ms")
    return table

"""The folder of engines: nothing is loaded from it but what this machine wrote, whole, for now."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from edge.contract.errors import EngineError
from edge.engine import graph_of
from edge.engine.trt import cache as trt_cache
from edge.engine.trt.cache import KEPT, EngineCache, Origin, Sidecar, default_folder
from edge.engine.trt.certified import origin_of
from tests.doubles import places
from tests.engine.trt.scene import DEVICE, FALLBACK, FULL, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge.contract.bundle import Bundle
    from edge.engine.trt.device import Device

STRANGER = 12345
"""A user of whom nothing is here."""


@pytest.fixture
def origin(bundle: Bundle) -> Origin:
    return origin_of(bundle, graph_of(bundle, FALLBACK), DEVICE)


@pytest.fixture
def plan(stocked: Workshop, origin: Origin) -> Path:
    return stocked.maker.cache.plan(origin)


def record_of(plan: Path) -> Path:
    """What lies beside a plan; its name is the same but for the plan's hash."""
    return plan.with_name(plan.name.partition("-")[0] + ".json")


def flip(plan: Path) -> None:
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)


def cut(plan: Path) -> None:
    os.truncate(plan, plan.stat().st_size - 100)


def link(plan: Path) -> None:
    """The same bytes, but wherever a link leads."""
    elsewhere = plan.parent.parent / "elsewhere"
    plan.rename(elsewhere)
    plan.symlink_to(elsewhere)


def spoil_record(plan: Path) -> None:
    record_of(plan).write_text('{"schema": "icecam.engine/1", "origin": {')


def newer_schema(plan: Path) -> None:
    record = json.loads(record_of(plan).read_text())
    record_of(plan).write_text(json.dumps({**record, "schema": "icecam.engine/2"}))


def of_another(plan: Path) -> None:
    (other,) = (one for one in plan.parent.glob("*.json") if one != record_of(plan))
    shutil.copy(other, record_of(plan))


def plan_of_another(plan: Path) -> None:
    (other,) = (one for one in plan.parent.glob("*.plan") if one.stem != plan.stem)
    shutil.copy(other, plan)


def drop_record(plan: Path) -> None:
    record_of(plan).unlink()


def drop_plan(plan: Path) -> None:
    plan.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "its plan is damaged"),
        (cut, "its plan is damaged"),
        (plan_of_another, "its plan is damaged"),
        (link, f"its plan cannot be read: {os.strerror(errno.ELOOP)}"),
        (drop_plan, f"its plan cannot be read: {os.strerror(errno.ENOENT)}"),
        (drop_record, "damaged record"),
        (spoil_record, "damaged record"),
        (newer_schema, "damaged record"),
        (of_another, "onnx_sha256"),
    ],
)
def test_what_is_not_whole_is_never_loaded_but_built_anew(
    stocked: Workshop, origin: Origin, plan: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(plan)
    sidecar, why = stocked.maker.cache.find(origin)
    assert sidecar is None
    assert reason in why
    with pytest.raises(EngineError, match="no engine for this machine"):
        stocked.maker.cache.load(origin)
    made = stocked.make(graph=FALLBACK)
    assert (made.found, stocked.builds) == ("built", 1)
    assert stocked.said[0] == f"building an engine for graph '{FALLBACK}' ({why})"
    assert stat.S_ISREG(plan.lstat().st_mode)
    assert stocked.maker.cache.find(origin)[0] is not None
    assert stocked.make(graph=FULL).found == "kept"


def test_a_station_s_process_refuses_a_plan_that_was_changed_behind_its_record(
    stocked: Workshop, plan: Path
) -> None:
    flip(plan)
    said = stocked.told("tell(error_of(opened))", graph=FALLBACK)
    assert "no engine for this machine in" in said
    assert "(its plan is damaged)" in said


class Change(NamedTuple):
    """What is another now, what the doubles are asked for, and the reason that is told."""

    device: Device
    settings: dict[str, str]
    reason: str


CHANGES = {
    "JetPack update": Change(
        replace(DEVICE, tensorrt="10.7.0"), {"version": "10.7.0"}, "tensorrt 10.3.0 → 10.7.0"
    ),
    "another board": Change(
        replace(DEVICE, compute_capability="8.6", name="Orin"),
        {"capability": "8.6", "name": "Orin"},
        "compute_capability 8.7 → 8.6, device Double of a GPU → Orin",
    ),
    "another Linux": Change(replace(DEVICE, l4t="36.4.3"), {}, "l4t  → 36.4.3"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_engine_of_another_machine_or_version_is_rebuilt_and_the_reason_told(
    stocked: Workshop, change: Change
) -> None:
    made = stocked.make(graph=FALLBACK, device=change.device, **change.settings)
    assert (made.found, stocked.builds) == ("built", 1)
    assert stocked.said[0] == f"building an engine for graph '{FALLBACK}' ({change.reason})"
    again = stocked.make(graph=FALLBACK, device=change.device, **change.settings)
    assert again.found == "kept"


def test_after_an_update_the_plan_s_bytes_do_not_reach_the_new_version(stocked: Workshop) -> None:
    said = stocked.told("tell(error_of(opened))", version="10.7.0", graph=FALLBACK)
    assert "(tensorrt 10.3.0 → 10.7.0)" in said
    assert "Version tag" not in said


def test_a_version_in_the_header_that_the_record_hides_is_refused_in_tensorrt_s_words(
    stocked: Workshop, plan: Path
) -> None:
    record = json.loads(record_of(plan).read_text())
    record["origin"]["tensorrt"] = "10.7.0"
    record_of(plan).write_text(json.dumps(record))
    said = stocked.told("tell(error_of(opened))", version="10.7.0", graph=FALLBACK)
    assert "TensorRT 10.7.0 does not load a plan of TensorRT 10.3.0" in said
    assert "expecting library version 10.7.0" in said


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o770, 0o707])
def test_a_folder_that_others_can_open_is_refused_by_name(stocked: Workshop, mode: int) -> None:
    stocked.folder.chmod(mode)
    with pytest.raises(EngineError, match=rf"is open to others \(mode {mode:o}, owner \S+\).*700"):
        EngineCache(stocked.folder)
    said = stocked.told("tell(error_of(opened))")
    assert f"{stocked.folder} is open to others" in said
    assert "Nothing in it was loaded; chmod 700" in said


def test_root_may_read_another_user_s_engines_and_loads_and_builds_none(
    stocked: Workshop, origin: Origin
) -> None:
    if os.geteuid():
        pytest.skip("NOT ROOT: cannot give a folder to another user")
    os.chown(stocked.folder, STRANGER, STRANGER)
    cache = EngineCache(stocked.folder)
    before = stocked.kept()
    assert cache.find(origin)[0] is not None
    assert cache.refused(origin, stocked.bundle.sha256) is None
    theirs = rf"belongs to user '#{STRANGER}'; .* \(sudo -u '#{STRANGER}' \.\.\.\).* --cache"
    with pytest.raises(EngineError, match=theirs):
        cache.load(origin)
    for rebuild in (False, True):
        with pytest.raises(EngineError, match=theirs):
            stocked.make(graph=FALLBACK, rebuild=rebuild)
    assert stocked.steps == []
    assert stocked.kept() == before


AS_A_STRANGER = f"""
import os, pathlib, sys, tempfile
from edge.contract.errors import EngineError
from edge.engine.trt.cache import EngineCache
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o700)
    place = pathlib.Path(folder) / sys.argv[1]
    EngineCache(place)
    os.seteuid({STRANGER})
    try:
        EngineCache(place)
    except EngineError as problem:
        print(problem)
    os.seteuid(0)
"""


@pytest.mark.parametrize(
    ("below", "said"),
    [
        ("", "belongs to user root; expected one of one's own: "),
        ("", "(sudo -u root ...)"),
        ("engines", "engines cannot be looked at (Permission denied)"),
        ("engines", "Run this as the user whose engines they are"),
    ],
)
def test_another_user_is_told_whose_engines_they_are(below: str, said: str) -> None:
    if os.geteuid():
        pytest.skip("NOT ROOT: cannot become another user")
    ended = subprocess.run(
        [sys.executable, "-c", AS_A_STRANGER, below],
        cwd=places.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said in ended.stdout


def test_a_folder_is_made_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = EngineCache(tmp_path / "deep" / "down" / "engines")
        with cache.building(pytest.fail):
            pass
    finally:
        os.umask(before)
    for folder in (cache.folder, cache.folder / "quarantine", cache.folder / "unfinished"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["file", "link", "below a file"])
def test_what_is_no_folder_of_its_own_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "below a file").symlink_to(tmp_path / "file")
    place = tmp_path / "file" / "engines" if kind == "below a file" else tmp_path / kind
    with pytest.raises(EngineError, match=r"is no folder|Not a directory"):  # noqa: SIM117 - either
        with EngineCache(place).building(pytest.fail):
            pytest.fail("it was taken")


def test_a_record_that_cannot_be_written_is_a_named_error(
    stocked: Workshop, plan: Path, origin: Origin
) -> None:
    record_of(plan).unlink()
    (record_of(plan) / "in the way").mkdir(parents=True)
    with pytest.raises(EngineError, match=r"engines cannot be used \(Is a directory\)"):
        stocked.make(graph=FALLBACK)
    assert stocked.maker.cache.find(origin)[0] is None


def test_where_there_is_no_room_nothing_is_built(
    stocked: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stocked.kept()
    usage = shutil.disk_usage(stocked.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    # Of the float16 graph, 2.3 MB, three times the size is wanted: 6 MiB.
    with pytest.raises(EngineError, match=r"engines: 5 MiB free; expected 6 MiB for the engine"):
        stocked.make(rebuild=True)
    assert stocked.steps == []
    assert stocked.kept() == before


def test_what_a_killed_build_left_is_removed_by_the_next(stocked: Workshop, origin: Origin) -> None:
    left = stocked.maker.cache.unfinished(origin)
    left.write_bytes(b"half")
    (left.parent / f".{left.name}.1234.part").write_bytes(b"a quarter")
    assert stocked.make(graph=FALLBACK).found == "kept"
    assert stocked.left("unfinished") == []


def test_the_second_of_two_builders_waits_and_is_told_so(tmp_path: Path) -> None:
    first, second = EngineCache(tmp_path / "engines"), EngineCache(tmp_path / "engines")
    order: list[str] = []

    def build() -> None:
        with second.building(lambda: order.append("waits")):
            order.append("second")

    with first.building(pytest.fail):
        other = threading.Thread(target=build)
        other.start()
        until = time.monotonic() + 10
        while not order and time.monotonic() < until:
            time.sleep(0.01)
        order.append("first ends")
    other.join(10)
    assert order == ["waits", "first ends", "second"]


@pytest.fixture
def crowded(stocked: Workshop, plan: Path) -> Workshop:
    """As many engines more as are kept, of the first seconds of 1970."""
    for number in range(KEPT):
        shutil.copy(plan, plan.with_name(f"{number:032x}-{number:016x}.plan"))
        record = shutil.copy(record_of(plan), plan.with_name(f"{number:032x}.json"))
        os.utime(record, (10 + number, 10 + number))
    return stocked


def names(workshop: Workshop, pattern: str) -> set[str]:
    return {path.stem.partition("-")[0] for path in workshop.folder.glob(pattern)}


def test_the_oldest_engines_go_when_there_are_too_many(crowded: Workshop, plan: Path) -> None:
    crowded.make(graph=FALLBACK, rebuild=True)
    kept = names(crowded, "*.plan")
    assert len(kept) == KEPT
    assert kept == names(crowded, "*.json")
    assert record_of(plan).stem in kept
    assert not kept & {f"{0:032x}", f"{1:032x}"}


def test_what_was_just_written_stays_though_the_clock_says_it_is_the_oldest(
    crowded: Workshop, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = type(crowded.folder).replace

    def in_1970(self: Path, target: Path) -> Path:
        os.utime(self, (1, 1))
        return replace_file(self, target)

    monkeypatch.setattr(type(crowded.folder), "replace", in_1970)
    made = crowded.make(graph=FALLBACK, rebuild=True)
    assert record_of(crowded.maker.cache.plan(origin)).stat().st_mtime == 1
    found, _ = crowded.maker.cache.find(origin)
    assert found is not None
    assert found.model_dump_json() == made.sidecar.model_dump_json()
    assert len(names(crowded, "*.plan")) == KEPT


ANOTHER = b"another plan of the same graph"


def lay_unfinished(workshop: Workshop, origin: Origin) -> Sidecar:
    """What a build that ended and was certified leaves, before it is kept."""
    sidecar, _ = workshop.maker.cache.find(origin)
    assert sidecar is not None
    workshop.maker.cache.unfinished(origin).write_bytes(ANOTHER)
    return sidecar.model_copy(
        update={"plan_sha256": hashlib.sha256(ANOTHER).hexdigest(), "plan_bytes": len(ANOTHER)}
    )


def test_the_engine_of_before_counts_until_the_record_of_the_new_one_is_written(
    stocked: Workshop, origin: Origin, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, before = stocked.maker.cache, plan.read_bytes()
    newer = lay_unfinished(stocked, origin)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge.engine.trt.cache.write_atomically", power_cut)
        with pytest.raises(KeyboardInterrupt):
            cache.keep(newer)
    assert cache.load(origin)[0] == before
    lay_unfinished(stocked, origin)
    cache.keep(newer)
    assert cache.load(origin) == (ANOTHER, newer)
    assert cache.plan(origin).name == f"{record_of(plan).stem}-{newer.plan_sha256[:16]}.plan"
    assert list(stocked.folder.glob(f"{record_of(plan).stem}*.plan")) == [cache.plan(origin)]


@pytest.mark.parametrize("until", ["_damage", "read_plan"])
def test_who_loads_while_an_engine_is_replaced_gets_the_new_one_whole(
    stocked: Workshop, origin: Origin, until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced between the record and the plan that it names, or before the plan's second read."""
    cache, newer = stocked.maker.cache, lay_unfinished(stocked, origin)
    where = trt_cache if until == "read_plan" else EngineCache
    real, replaced = getattr(where, until), []

    def replacing(*arguments: object) -> object:
        if not replaced:
            replaced.append(True)
            cache.keep(newer)
        return real(*arguments)

    monkeypatch.setattr(where, until, replacing)
    assert cache.load(origin) == (ANOTHER, newer)
    assert replaced


def test_a_person_s_engines_lie_in_the_cache_folder_of_the_desktop_s_rules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "icecam" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(default_folder()) == "/home/someone/.cache/icecam/engines"

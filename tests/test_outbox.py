"""The outbox: order, numbers, and what survives a SIGKILL."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.contract.errors import ConfigError, DeliveryError
from edge.outbox import Draft, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.outbox import Kind, Waiting


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path)) as opened:
        yield opened


def draft(kind: Kind, text: str) -> Draft:
    return Draft(
        kind=kind,
        topic=f"t/{kind}",
        payload=text.encode(),
        content_type="text/plain",
        properties={"n": text},
    )


def both(camera: str) -> Callable[[int], list[Draft]]:
    return lambda seq: [draft("coverage", f"{camera}{seq}"), draft("mask", f"{camera}{seq}")]


def drain(outbox: Outbox) -> list[Waiting]:
    taken = []
    while (message := outbox.take()) is not None:
        taken.append(message)
    return taken


def names(messages: list[Waiting]) -> list[str]:
    return [f"{m.kind[0]}:{m.payload.decode()}:{'live' if m.live else 'back'}" for m in messages]


@pytest.mark.protocol("order-2")
def test_newest_coverage_leaves_first_then_the_backlog_in_order_then_masks(outbox: Outbox) -> None:
    for _ in range(3):
        outbox.enqueue("a", None, both("a"))
    outbox.enqueue("b", None, both("b"))
    assert names(drain(outbox)) == [
        "c:b1:live",
        "c:a3:live",
        "c:a1:back",
        "c:a2:back",
        "m:b1:live",
        "m:a3:live",
        "m:a1:back",
        "m:a2:back",
    ]


def test_a_new_observation_overtakes_waiting_masks(outbox: Outbox) -> None:
    outbox.enqueue("a", None, both("a"))
    first = outbox.take()
    assert first is not None
    outbox.acknowledge(first)
    outbox.enqueue("a", None, both("a"))
    assert names(drain(outbox)) == ["c:a2:live", "m:a2:live", "m:a1:back"]


def test_what_is_older_than_its_lane_has_sent_is_never_live(outbox: Outbox) -> None:
    outbox.enqueue("a", None, both("a"))
    outbox.enqueue("a", None, both("a"))
    newest = outbox.take()
    assert newest is not None
    assert newest.payload == b"a2"
    older = outbox.take()
    assert older is not None
    assert (older.payload, older.live) == (b"a1", False)


def test_the_lane_is_remembered_over_a_restart(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path)) as outbox:
        outbox.enqueue("a", None, both("a"))
        outbox.enqueue("a", None, both("a"))
        newest = outbox.take()
        assert newest is not None
        outbox.acknowledge(newest)
    with closing(Outbox(tmp_path)) as outbox:
        assert names(drain(outbox))[0] == "c:a1:back"


def test_released_messages_wait_again_with_the_same_rank(outbox: Outbox) -> None:
    outbox.enqueue("a", None, both("a"))
    before = names(drain(outbox))
    assert drain(outbox) == []
    outbox.release()
    assert names(drain(outbox)) == before


def test_seq_counts_per_camera_from_one_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path)) as outbox:
        seqs = [outbox.enqueue(camera, None, both(camera)) for camera in "aab"]
        epoch = outbox.epoch
    with closing(Outbox(tmp_path)) as outbox:
        seqs.append(outbox.enqueue("a", None, both("a")))
        assert outbox.epoch == epoch
    assert seqs == [1, 2, 1, 3]


def test_an_observation_that_cannot_be_built_leaves_no_hole_and_no_cursor(outbox: Outbox) -> None:
    def fails(_: int) -> list[Draft]:
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        outbox.enqueue("a", "cursor", fails)
    assert outbox.cursor("a") is None
    assert outbox.enqueue("a", None, both("a")) == 1


def test_the_cursor_is_stored_with_the_observation_and_kept_where_none_is_given(
    outbox: Outbox,
) -> None:
    outbox.enqueue("a", "picture-7", both("a"))
    outbox.enqueue("a", None, both("a"))
    assert outbox.cursor("a") == "picture-7"
    assert outbox.cursor("unknown") is None


@pytest.mark.protocol("park-1")
def test_a_parked_message_is_out_of_the_way_and_counted(outbox: Outbox) -> None:
    outbox.enqueue("a", None, both("a"))
    refused = outbox.take()
    assert refused is not None
    outbox.park(refused, "0x87 not authorized")
    assert names(drain(outbox)) == ["m:a1:live"]
    assert outbox.depth().parked == 1
    assert outbox.depth().observations == 0


@pytest.mark.protocol("park-1")
def test_what_was_parked_is_tried_again_after_the_next_start(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path)) as outbox:
        outbox.enqueue("a", None, both("a"))
        refused = outbox.take()
        assert refused is not None
        outbox.park(refused, "0x87 not authorized")
    with closing(Outbox(tmp_path)) as outbox:
        assert names(drain(outbox)) == ["c:a1:live", "m:a1:live"]


def test_a_refusal_that_may_pass_lets_the_message_wait_and_counts(outbox: Outbox) -> None:
    outbox.enqueue("a", None, both("a"))
    for times in (1, 2, 3):
        refused = outbox.take()
        assert refused is not None
        assert refused.payload == b"a1"
        assert outbox.retry(refused) == times


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ConfigError, match="state_dir /proc/nope cannot be made"):
        Outbox(Path("/proc/nope"))


def test_depth_counts_what_waits(outbox: Outbox) -> None:
    empty = outbox.depth()
    assert (empty.observations, empty.masks, empty.waiting_bytes, empty.oldest_age_s) == (
        0, 0, 0, None,
    )  # fmt: skip
    outbox.enqueue("a", None, lambda _: [draft("coverage", "12345"), draft("mask", "123")])
    full = outbox.depth()
    assert (full.observations, full.masks, full.waiting_bytes) == (1, 1, 8)
    assert full.oldest_age_s is not None
    assert full.oldest_age_s < 5


def test_a_second_station_in_the_same_folder_is_refused(outbox: Outbox) -> None:
    with pytest.raises(ConfigError, match="in use by another icecam"):
        Outbox(outbox.path.parent)


def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(DeliveryError, match=r"outbox\.sqlite: not a usable outbox"):
        Outbox(tmp_path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    Outbox(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "outbox.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(DeliveryError, match="layout 99"):
        Outbox(tmp_path)


def test_commits_survive_power_loss_by_sqlites_own_account(outbox: Outbox) -> None:
    pragma = {
        name: outbox._database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "auto_vacuum")
    }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "auto_vacuum": 2}


_PRODUCER = """
import sys
from pathlib import Path
from edge.outbox import Draft, Outbox
outbox = Outbox(Path(sys.argv[1]))
def drafts(seq):
    text = str(seq).encode()
    return [Draft(kind=kind, topic="t", payload=text * 200, content_type="x", properties={})
            for kind in ("coverage", "mask")]
while True:
    print(outbox.enqueue("a", None, drafts), flush=True)
"""


def test_nothing_that_was_accepted_is_lost_to_sigkill(tmp_path: Path) -> None:
    """Rule: seq has no holes, and an observation is there whole or was never taken."""
    chance = random.Random(4)
    accepted = 0
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", _PRODUCER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as producer:
            assert producer.stdout is not None
            first = int(producer.stdout.readline())
            assert first in (accepted + 1, accepted + 2)
            time.sleep(chance.uniform(0.02, 0.2))
            producer.send_signal(signal.SIGKILL)
            last = [int(line) for line in producer.stdout.read().split("\n")[:-1] if line]
        accepted = max([first, *last])
    with closing(Outbox(tmp_path)) as outbox:
        messages = drain(outbox)
    for kind in ("coverage", "mask"):
        seqs = sorted(m.seq for m in messages if m.kind == kind)
        assert len(seqs) in (accepted, accepted + 1)
        assert seqs == list(range(1, len(seqs) + 1))

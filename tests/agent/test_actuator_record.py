"""The actuator's memory of what it changed."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyball_agent.actuator.record import EMPTY, Entry, Record, RecordError, decode, encode

WATTS = st.none() | st.integers(1, 3000).map(float)
ENTRIES = st.dictionaries(
    st.text("GPU-0123456789abcdef", min_size=1, max_size=40),
    st.builds(Entry, lock=st.booleans(), cap_watts=WATTS, cap_previous_watts=WATTS, cap_before_watts=WATTS),
    max_size=8,
)


@pytest.fixture
def record(tmp_path):
    made = Record(tmp_path / "actuator.json", "boot-1")
    yield made
    made.close()


@given(entries=ENTRIES)
def test_what_is_written_is_read_back_in_the_same_boot_and_forgotten_in_another(entries):
    raw = encode("boot-1", entries)
    assert dict(decode(raw, "boot-1").entries) == entries
    other = decode(raw, "boot-2")
    assert not other.entries
    assert set(other.forgotten) == entries.keys()


@given(entries=ENTRIES, cut=st.integers(0, 400))
def test_a_file_cut_short_is_damaged_and_not_a_crash(entries, cut):
    raw = encode("boot-1", entries)
    if cut < len(raw.rstrip()):
        assert decode(raw[:cut], "boot-1").damaged


@given(junk=st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_content_is_judged(junk):
    raw = junk if isinstance(junk, bytes) else junk.encode()
    assert decode(raw, "boot-1").damaged


def test_an_entry_is_on_the_disk_when_put_returns(record, tmp_path):
    record.put("GPU-1", Entry(lock=True))
    assert json.loads((tmp_path / "actuator.json").read_text())["gpus"]["GPU-1"]["lock"] is True


def test_the_first_cap_remembers_what_was_there_before_and_later_ones_what_they_replaced():
    entry = EMPTY.with_cap(400, 700).with_cap(500, 400)
    assert (entry.cap_before_watts, entry.cap_previous_watts, entry.cap_watts) == (700, 400, 500)
    assert entry.ours_watts == (500, 400)


def test_an_entry_of_nothing_is_removed(record, tmp_path):
    record.put("GPU-1", Entry(lock=True))
    record.put("GPU-1", EMPTY)
    assert json.loads((tmp_path / "actuator.json").read_text())["gpus"] == {}


def test_a_put_that_changes_nothing_does_not_touch_the_disk(record, tmp_path):
    record.put("GPU-1", Entry(lock=True))
    before = (tmp_path / "actuator.json").stat().st_ino
    record.put("GPU-1", Entry(lock=True))
    assert (tmp_path / "actuator.json").stat().st_ino == before


def test_a_full_disk_leaves_the_old_record_and_says_what_to_do(record, tmp_path, monkeypatch):
    record.put("GPU-1", Entry(lock=True))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"actuator\.json cannot be written \(No space left.*free space"):
        record.put("GPU-2", Entry(lock=True))
    monkeypatch.undo()
    assert record.entry("GPU-2") == EMPTY
    assert list(json.loads((tmp_path / "actuator.json").read_text())["gpus"]) == ["GPU-1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["actuator.json", "actuator.json.lock"]


def test_a_second_holder_is_refused_until_the_first_lets_go(record, tmp_path):
    with pytest.raises(RecordError, match="held by another actuator"):
        Record(tmp_path / "actuator.json", "boot-1")
    record.close()
    second = Record(tmp_path / "actuator.json", "boot-1")
    second.close()
    record._held = os.open(os.devnull, os.O_RDONLY)  # for the fixture to close


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="mount a writable host directory at"):
        Record(tmp_path / "file" / "actuator.json", "boot-1")

"""The agent's files: profiles that it reads, and what controllers learnt."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flyball_agent.files import MAX_PROFILE_BYTES, ProfileFolder, StateFile
from flyball_agent.memory import MAX_BYTES, MAX_ENTRY_BYTES, Remembered, read, write
from flyball_agent.profiles import DecodePoint, Profile

PROFILE = Profile("chat", "H100", "llama", 1, "0.11", "2026-11-01", decode=(DecodePoint(1980, 1, 10.0, 0.01, 300.0),))


def put(directory, name, text, mtime):
    path = directory / f"{name}.json"
    path.write_text(text)
    os.utime(path, (mtime, mtime))


def test_a_profile_is_read_when_it_is_named_and_again_when_its_file_changes(tmp_path):
    folder = ProfileFolder(tmp_path)
    put(tmp_path, "chat", PROFILE.to_json(), 1000)
    first = folder.shelf(["chat"])
    assert first == {"chat": PROFILE}
    assert folder.shelf(["chat"]) is first
    put(tmp_path, "chat", replace(PROFILE, created="2026-11-02").to_json(), 2000)
    assert folder.shelf(["chat"])["chat"].created == "2026-11-02"


def test_one_profile_that_changes_leaves_the_others_as_they_are(tmp_path):
    folder = ProfileFolder(tmp_path)
    put(tmp_path, "a", PROFILE.to_json(), 1000)
    put(tmp_path, "b", PROFILE.to_json(), 1000)
    before = folder.shelf(["a", "b"])
    put(tmp_path, "b", replace(PROFILE, model="qwen").to_json(), 2000)
    after = folder.shelf(["a", "b"])
    assert after["a"] is before["a"]
    assert after["b"].model == "qwen"


def test_a_profile_that_is_not_there_is_said_how_to_make_and_taken_when_it_comes(tmp_path):
    folder = ProfileFolder(tmp_path / "none")
    assert "flyball profile" in folder.shelf(["chat"])["chat"]
    (tmp_path / "none").mkdir()
    put(tmp_path / "none", "chat", PROFILE.to_json(), 1000)
    assert folder.shelf(["chat"]) == {"chat": PROFILE}


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".hidden", "x" * 241, "a\0b"])
def test_no_name_leads_out_of_the_directory(tmp_path, name):
    put(tmp_path, "secret", PROFILE.to_json(), 1000)
    inside = tmp_path / "profiles"
    inside.mkdir()
    assert "no name of a file" in ProfileFolder(inside).shelf([name])[name]


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"kind": "flyball-profile", "version": 1}', "\ud800"])
def test_a_file_that_is_no_profile_is_a_sentence(tmp_path, text):
    (tmp_path / "chat.json").write_bytes(text.encode(errors="surrogatepass"))
    assert ProfileFolder(tmp_path).shelf(["chat"])["chat"].startswith("profile 'chat' cannot be used: ")


def test_a_huge_file_is_not_read(tmp_path):
    put(tmp_path, "chat", " " * (MAX_PROFILE_BYTES + 1), 1000)
    assert "has more than" in ProfileFolder(tmp_path).shelf(["chat"])["chat"]


def entry(**changes):
    return replace(Remembered("k", "s", "chat", "Flyball", {"version": 1, "gains": [0.1, 2.0]}), **changes)


def test_what_is_written_is_read_back(tmp_path):
    file = StateFile(tmp_path / "states.json")
    assert file.read() is None
    content, notes = write([entry(), entry(key="l")], "boot")
    assert (file.write(content), notes) == (True, [])
    assert read(file.read(), "boot") == ({"k": entry(), "l": entry(key="l")}, "")


def test_the_same_again_is_not_written(tmp_path):
    file = StateFile(tmp_path / "states.json")
    file.write(b"x")
    (tmp_path / "states.json").unlink()
    assert not file.write(b"x")
    assert file.write(b"y")


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "states.json").write_bytes(b"before")
    (tmp_path / "states.json.new").mkdir()
    file = StateFile(tmp_path / "states.json")
    with pytest.raises(OSError, match="directory"):
        file.write(b"after")
    assert file.read() == b"before"


def test_without_a_path_nothing_is_kept():
    file = StateFile(None)
    assert (file.kept, file.read(), file.write(b"x")) == (False, None, False)


@pytest.mark.parametrize(
    "state", [{"x": float("nan")}, {"x": object()}, {"x": "y" * MAX_ENTRY_BYTES}], ids=["NaN", "object", "huge"]
)
def test_a_state_that_cannot_be_kept_is_named_and_the_others_are(state):
    content, (note,) = write([entry(state=state), entry(key="l")], "boot")
    assert "Flyball for policy chat" in note
    assert set(read(content, "boot")[0]) == {"l"}


def test_the_file_never_grows_beyond_what_is_read():
    many = [entry(key=str(number), state={"x": "y" * (MAX_ENTRY_BYTES - 200)}) for number in range(8)]
    content, notes = write(many, "boot")
    assert len(content) <= MAX_BYTES
    kept, trouble = read(content, "boot")
    assert (trouble, len(kept) + len(notes)) == ("", 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"null", "cannot be read"),
        (b"x" * (MAX_BYTES + 1), "at most"),
        (write([entry()], "another")[0], "another boot"),
        (write([entry()], "boot")[0].replace(b'"version": 1', b'"version": 2'), "version 2"),
        (write([entry()], "boot")[0][:-30], "cannot be read"),
        (write([entry()], "boot")[0].replace(b'"key":"k"', b'"key":5'), "cannot be read"),
    ],
    ids=["empty", "deep", "null", "huge", "boot", "version", "cut off", "type"],
)
def test_a_file_that_cannot_be_believed_gives_nothing_and_says_why(content, words):
    kept, trouble = read(content, "boot")
    assert kept == {}
    assert words in trouble


@example("")
@given(st.recursive(st.none() | st.floats() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3)))
def test_no_json_in_the_file_raises(said):
    content = json.dumps({"kind": "flyball-controllers", "version": 1, "boot": "b", "controllers": said}).encode()
    kept, trouble = read(content, "b")
    assert kept == {}
    assert trouble or said == []

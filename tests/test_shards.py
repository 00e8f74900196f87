"""Shards: lines that survive kills and damage, and merge into the store once, however often."""

import errno
import fcntl
import json
import os
import signal
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import NASTY, ROWS, child, row, task

from hwsim.sweep import shards as module
from hwsim.sweep.shards import merge, open_shard, parse_shard
from hwsim.sweep.sink import StoreSink
from hwsim.sweep.store import close_store, done_keys, ended_keys, known_tasks, open_store, set_members, study_rows
from hwsim.sweep.tasks import DONE, ERROR, TIMEOUT
from models.unit import InputError


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "store.sqlite")
    yield store
    close_store(store)


def written(folder, index, count, tasks=(), rows=()):
    shard = open_shard(folder, index, count)
    shard.record(tasks, rows)
    shard.close()
    return shard.path


def rows_in(store):
    keys = sorted(ended_keys(store))
    set_members(store, keys)
    return {one["key"]: one for one in study_rows(store)}


def test_names_of_shards():
    assert parse_shard("3/16") == (3, 16)
    for text in ("0/4", "5/4", "1/0", "1/1000000", "a/b", "1", "1/2/3", "-1/2", " 1/2", "1/2\n", ""):
        with pytest.raises(InputError, match=r"shard "):
            parse_shard(text)


def sink_in(folder, shard):
    return open_shard(folder, *shard) if shard else StoreSink(open_store(folder / "store.sqlite"))


def test_a_shard_and_a_store_are_the_same_sink(tmp_path):
    for shard in (None, (2, 3)):
        sink = sink_in(tmp_path, shard)
        sink.record([task("t", cycles=3), task("f", ERROR)], [row("a"), row("b", status=TIMEOUT)])
        sink.record([], [row("b"), row("c", status=ERROR)])
        sink.record([], [row("a", status=ERROR)])
        sink.record([], [])
        for _ in range(2):
            assert sink.done_keys() == {"a", "b"}
            assert sink.ended_keys() == {"a", "b", "c"}
            found = sink.known_tasks(["t", "f", "none"])
            assert {key: (known.status, known.result, known.wall_s) for key, known in found.items()} == {
                "t": (DONE, {"cycles": 3}, 1.0)
            }
            sink.close()
            sink = sink_in(tmp_path, shard)
        with pytest.raises(InputError, match="cannot be stored: cycles is 'x'"):
            sink.record([task("u")], [row("d", cycles="x")])
        assert sink.known_tasks(["u"]) == {}
        sink.close()
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["2-of-3.jsonl"]


def test_merging_brings_every_row_once(tmp_path, store):
    written(tmp_path, 1, 2, [task("t", cycles=1), task("s")], [row("a", message=NASTY), row("b", status=ERROR)])
    written(tmp_path, 2, 2, [task("t", cycles=1)], [row("b", accuracy=0.75), row("c", params={"word": "024"})])
    first = merge(store, tmp_path)
    assert (first.files, first.points, first.tasks, first.known, first.damaged) == (2, 4, 2, 1, 0)
    kept = rows_in(store)
    assert kept.keys() == {"a", "b", "c"}
    assert (kept["a"]["message"], kept["b"]["accuracy"], kept["c"]["params"]) == (NASTY, 0.75, {"word": "024"})
    again = merge(store, tmp_path)
    assert (again.points, again.tasks, again.known) == (0, 0, 7)
    assert rows_in(store) == kept
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["1-of-2.jsonl", "2-of-2.jsonl"]


def test_nothing_to_merge(tmp_path, store):
    assert merge(store, tmp_path) == module.Merged()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "notes.txt").write_text("x")
    (tmp_path / "shards" / "1-of-1.jsonl").mkdir()
    (tmp_path / "shards" / "1-of-2.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "shards" / "2-of-2.jsonl")
    assert merge(store, tmp_path) == module.Merged()


def test_a_failure_in_a_shard_does_not_undo_what_is_done(tmp_path, store):
    sink = sink_in(tmp_path, None)
    sink.record([], [row("a", accuracy=0.5)])
    written(tmp_path, 1, 1, [], [row("a", status=ERROR, accuracy=None)])
    assert merge(store, tmp_path).points == 0
    assert rows_in(store)["a"]["accuracy"] == 0.5
    sink.close()


def test_of_failures_the_latest_is_kept(tmp_path, store):
    for year, message in ((2, "second"), (1, "first"), (3, "third")):
        failed = row("a", status=ERROR, message=message, accuracy=None, created=f"200{year}-01-01T00:00:00+00:00")
        written(tmp_path, year, 3, [], [failed])
        expected = "third" if year == 3 else "second"
        merge(store, tmp_path)
        assert rows_in(store)["a"]["message"] == expected
        again = merge(store, tmp_path)
        assert (again.points, again.damaged) == (0, 0)
        assert rows_in(store)["a"]["message"] == expected


def test_rows_of_another_version(tmp_path, store):
    """Fields that are unknown here are kept in the row's detail; those that are missing are empty."""
    path = written(tmp_path, 1, 1, [], [row("a")])
    raw = path.read_bytes()
    body = raw[raw.index(b'"format"') : -2].replace(b'"accuracy":0.5,', b'"coolness":0.25,"flags":["x"],')
    path.write_bytes(b'{"check":"%s",%s}\n' % (module._check(body), body))
    assert merge(store, tmp_path).points == 1
    (only,) = rows_in(store).values()
    assert only["accuracy"] is None
    assert only["detail"] == {"ops": {"mul": 1.5}, "coolness": 0.25, "flags": ["x"]}


def test_rows_that_fit_no_store_are_damage_and_the_others_come_through(tmp_path, store):
    path = written(tmp_path, 1, 1, [task("t")], [row("a"), row("b"), row("c")])
    lines = path.read_bytes().splitlines(keepends=True)
    for number, (old, new) in {1: (b'"cycles":7', b'"cycles":"<b>"'), 2: (b'"detail":{', b'"detail":7,"x":{')}.items():
        body = lines[number][lines[number].index(b'"format"') : -2].replace(old, new)
        lines[number] = b'{"check":"%s",%s}\n' % (module._check(body), body)
    path.write_bytes(b"".join(lines))
    found = merge(store, tmp_path)
    assert (found.points, found.tasks, found.damaged) == (1, 1, 2)
    assert sorted(found.places) == [f"{path}:2", f"{path}:3"]
    assert ended_keys(store) == {"c"}


def test_every_line_is_json_of_its_own(tmp_path):
    path = written(tmp_path, 1, 1, [task("t", cycles=1)], [row("a", message=NASTY)])
    one, two = (json.loads(line) for line in path.read_bytes().splitlines())
    assert (one["kind"], one["key"], one["data"]["result"]) == ("task", "t", {"cycles": 1})
    assert (two["kind"], two["status"], two["data"]["message"]) == ("point", DONE, NASTY)


# ---- damage


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    tasks = [task(f"t{number}", cycles=number) for number in range(10)]
    return written(folder, 1, 1, tasks, [row(f"k{number}", message=NASTY) for number in range(10)]).read_bytes()


def test_a_torn_line_is_cut_off_and_its_work_done_again(tmp_path, filled):
    place = tmp_path / "shards" / "1-of-1.jsonl"
    place.parent.mkdir()
    whole = filled.rindex(b"\n", 0, -1) + 1
    for length in (whole + 1, whole + 200, len(filled) - 1):
        place.write_bytes(filled[:length])
        shard = open_shard(tmp_path, 1, 1)
        assert shard.done_keys() == {f"k{number}" for number in range(9)}
        assert place.stat().st_size == whole
        shard.record([], [row("k9", message=NASTY)])
        shard.close()
        assert place.read_bytes() == filled


def test_a_line_that_is_being_written_is_left_for_later(tmp_path, store, filled):
    place = tmp_path / "shards" / "1-of-1.jsonl"
    place.parent.mkdir()
    place.write_bytes(filled[:-50])
    found = merge(store, tmp_path)
    assert (found.points, found.damaged) == (9, 0)
    place.write_bytes(filled)
    assert (merge(store, tmp_path).points, len(done_keys(store))) == (1, 10)


def test_damage_costs_the_lines_that_it_hits(tmp_path, filled):
    place = tmp_path / "shards" / "1-of-1.jsonl"
    place.parent.mkdir()
    path = tmp_path / "store.sqlite"

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, len(filled) - 2), st.integers(1, 255))
    def flip(position, change):
        data = bytearray(filled)
        data[position] ^= change
        place.write_bytes(data)
        path.unlink(missing_ok=True)
        store = open_store(path)
        found = merge(store, tmp_path)
        kept = rows_in(store)
        known = known_tasks(store, [f"t{number}" for number in range(10)])
        close_store(store)
        # a byte that becomes an end of line makes two damaged ones; an end of line that goes joins two
        assert 18 <= found.points + found.tasks <= 19
        assert 1 <= found.damaged <= 2
        assert all(one == rows[key] for key, one in kept.items())
        assert all(outcome.result == {"cycles": int(key[1:])} for key, outcome in known.items())
        shard = open_shard(tmp_path, 1, 1)
        assert (len(shard.done_keys()), len(shard.places)) == (len(kept), len(known))
        shard.close()

    place.write_bytes(filled)
    store = open_store(path)
    merge(store, tmp_path)
    rows = rows_in(store)
    close_store(store)
    assert len(rows) == 10
    flip()


def test_any_bytes_are_no_more_than_damage(tmp_path):
    place = tmp_path / "shards" / "1-of-1.jsonl"
    place.parent.mkdir()
    store = open_store(tmp_path / "store.sqlite")

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.binary(max_size=60) | st.just(b'{"check":"0000000000000000","format":1}'), max_size=5))
    def read(lines):
        place.write_bytes(b"\n".join(lines))
        found = merge(store, tmp_path)
        assert found.damaged == place.read_bytes().count(b"\n")
        open_shard(tmp_path, 1, 1).close()

    read()
    close_store(store)


def test_a_line_that_says_two_things_is_damage(tmp_path, store):
    """The key and the status stand twice in a line; a right checksum does not make them agree."""
    path = written(tmp_path, 1, 1, [], [row("a")])
    for old, new in ((b'"key":"a","status"', b'"key":"b","status"'), (b'"data":{', b'"data":{"key":"c",')):
        body = path.read_bytes()
        body = body[body.index(b'"format"') : -2].replace(old, new)
        forged = path.with_name("2-of-2.jsonl")
        forged.write_bytes(b'{"check":"%s",%s}\n' % (module._check(body), body))
        merge(store, tmp_path)
    assert ended_keys(store) <= {"a"}


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, store, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE", 10_000)
    path = written(tmp_path, 1, 1, [], [row("a")])
    with path.open("ab") as file:
        for _ in range(200):
            file.write(b"x" * 10_000)
        file.write(b"\n")
    written(tmp_path, 1, 1, [], [row("b")])
    tracemalloc.start()
    found = merge(store, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.points, found.damaged, found.places) == (2, 1, (f"{path}:2",))
    assert peak < 1_000_000


def test_merging_needs_the_memory_of_a_group_alone(tmp_path, store, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 20)
    peaks = []
    for count in (60, 400):
        written(tmp_path, 1, 1, [], [row(f"k{number}", message="x" * 2000) for number in range(count)])
        tracemalloc.start()
        merge(store, tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5
    assert len(done_keys(store)) == 400


def test_rows_of_any_text_survive(tmp_path):
    @settings(max_examples=12, deadline=None)
    @given(st.lists(ROWS, max_size=4, unique_by=lambda one: one["key"]))
    def survive(rows):
        for path in ((tmp_path / "store.sqlite"), *(tmp_path / "shards").glob("*")):
            path.unlink(missing_ok=True)
        written(tmp_path, 1, 1, [], rows)
        store = open_store(tmp_path / "store.sqlite")
        merge(store, tmp_path)
        found = rows_in(store)
        close_store(store)
        assert found == {one["key"]: one for one in rows}

    survive()


# ---- processes


def test_one_process_at_a_time(tmp_path):
    shard = open_shard(tmp_path, 1, 2)
    with pytest.raises(InputError, match=r"1-of-2.jsonl: another process is at work on this shard; wait for it"):
        open_shard(tmp_path, 1, 2)
    other = open_shard(tmp_path, 2, 2)
    other.close()
    shard.close()
    open_shard(tmp_path, 1, 2).close()


def test_where_files_have_no_locks_a_file_stands_for_one(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    shard = open_shard(tmp_path, 1, 1)
    with pytest.raises(InputError, match=rf"process {os.getpid()} on .*if it is gone, delete .*1-of-1.lock"):
        open_shard(tmp_path, 1, 1)
    shard.close()
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["1-of-1.jsonl"]
    open_shard(tmp_path, 1, 1).close()


def test_places_that_cannot_be_used(tmp_path):
    (tmp_path / "shards").write_text("")
    with pytest.raises(InputError, match="shards: File exists"):
        open_shard(tmp_path, 1, 1)
    (tmp_path / "shards").unlink()
    (tmp_path / "shards").symlink_to(tmp_path)
    with pytest.raises(InputError, match="shards: is a link"):
        open_shard(tmp_path, 1, 1)
    (tmp_path / "shards").unlink()
    (tmp_path / "shards" / "1-of-1.jsonl").mkdir(parents=True)
    with pytest.raises(InputError, match=r"1-of-1.jsonl: Is a directory"):
        open_shard(tmp_path, 1, 1)
    (tmp_path / "shards" / "2-of-2.jsonl").symlink_to(tmp_path / "away")
    with pytest.raises(InputError, match=r"2-of-2.jsonl: "):
        open_shard(tmp_path, 2, 2)
    assert not (tmp_path / "away").exists()


def test_a_full_disk_costs_nothing_but_what_did_not_fit(tmp_path):
    """RLIMIT_FSIZE: a write that fails half way."""
    code = """
    shard = open_shard(Path(sys.argv[1]), 1, 1)
    shard.record([], [row("a")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        shard.record([task("t")], [row("b"), row("c", message="x" * 10000)])
    except InputError as error:
        print(error, shard.path.stat().st_size, shard.ended_keys())
    shard.record([], [row("d")])
    """
    with child("from hwsim.sweep.shards import open_shard\nif True:" + code, tmp_path) as process:
        said = process.stdout.read()
    assert process.returncode == 0
    assert "File too large; make room and run the same command again" in said
    assert said.rstrip().endswith("{'a'}")
    shard = open_shard(tmp_path, 1, 1)
    assert (shard.ended_keys(), shard.places) == ({"a", "d"}, {})
    shard.close()


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    code = """
    shard = open_shard(Path(sys.argv[1]), 1, 1)
    start = len(shard.ended_keys())
    for number in range(start, start + 100_000):
        shard.record([task(f"t{number}", value=number)], [row(f"k{number}", cycles=number)])
        print(number, flush=True)
    """
    acknowledged = set()
    for attempt in range(3):
        with child("from hwsim.sweep.shards import open_shard\nif True:" + code, tmp_path) as process:
            for _ in range(20 + 13 * attempt):
                acknowledged.add(int(process.stdout.readline()))
            process.send_signal(signal.SIGKILL)
            acknowledged.update(int(line) for line in process.stdout.read().splitlines() if line)
    path = tmp_path / "shards" / "1-of-1.jsonl"
    store = open_store(Path(tmp_path / "store.sqlite"))
    found = merge(store, tmp_path)
    assert found.damaged == 0
    assert {f"k{number}" for number in acknowledged} <= done_keys(store)
    assert done_keys(store) == {f"k{number}" for number in range(found.points)}
    assert path.read_bytes().count(b'"kind":"point"') == found.points, "a point stands there twice"
    assert known_tasks(store, [f"t{number}" for number in acknowledged]).keys() == {f"t{n}" for n in acknowledged}
    close_store(store)

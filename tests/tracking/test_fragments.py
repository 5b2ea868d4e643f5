"""Files of runs: how much of one is whole, and what is done with what a kill left."""

import os

import numpy as np
import pytest

from sidepipe.tracking.fragments import BLOCK_BYTES, Fragment, make_fit, paths_by_run, whole_bytes

HEADER = b":W&B" + b"\xe1\xbe\x00"


def log_of(records):
    """The bytes of a LevelDB log of these records, and where each record ends."""
    content, ends = bytearray(HEADER), []
    for record in records:
        left, first = record, True
        while left or first:
            room = BLOCK_BYTES - len(content) % BLOCK_BYTES
            if room < 7:
                content += bytes(room)
                continue
            piece, left = left[: room - 7], left[room - 7 :]
            kind = (1 if not left else 2) if first else (4 if not left else 3)
            content += b"sums" + len(piece).to_bytes(2, "little") + bytes([kind]) + piece
            first = False
        ends.append(len(content))
    return bytes(content), ends


def test_whole_bytes_end_with_the_last_whole_record_wherever_the_file_is_torn():
    rng = np.random.default_rng(0)
    sizes = [5, 0, 300, 32_740, 2, 70_000, 40, 1, 33_000, 9]
    content, ends = log_of([rng.bytes(size) for size in sizes])
    cuts = {n + d for n in (*ends, BLOCK_BYTES, 2 * BLOCK_BYTES) for d in range(-9, 10)}
    for cut in sorted(c for c in (*cuts, *range(40)) if 0 <= c <= len(content)):
        whole = max((end for end in ends if end <= cut), default=min(len(HEADER), cut))
        assert whole_bytes(content[:cut]) == whole, cut
    assert whole_bytes(content) == len(content)


def test_what_is_no_log_has_no_whole_record():
    assert whole_bytes(b"") == 0
    assert whole_bytes(HEADER + b"\x00" * 40_000) == len(HEADER)


def fragment(folder, name, content, run=None, ended=False):
    path = folder / "wandb" / name / f"run-{name.rpartition('-')[2]}.wandb"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return Fragment(path, run, 0, ended)


def test_a_torn_end_is_cut_off_and_kept_beside(tmp_path, caplog):
    content, ends = log_of([b"a" * 10, b"b" * 10])
    torn = fragment(tmp_path, "offline-run-20260101_000000-a", content[:-3], run={})
    assert make_fit(torn, tmp_path)
    assert torn.path.read_bytes() == content[: ends[0]]
    assert torn.path.with_suffix(".wandb.torn").read_bytes() == content[:-3]
    assert "14 torn bytes at its end cut off" in caplog.text


def test_a_whole_file_is_left_as_it_is(tmp_path):
    content, _ = log_of([b"a" * 10, b"b" * 10])
    whole = fragment(tmp_path, "offline-run-20260101_000000-a", content, run={})
    assert make_fit(whole, tmp_path)
    assert [p.name for p in whole.path.parent.iterdir()] == ["run-a.wandb"]
    assert whole.path.read_bytes() == content


def test_a_file_that_says_nothing_is_set_aside_with_a_line(tmp_path, caplog):
    broken = fragment(tmp_path, "offline-run-20260101_000000-a", HEADER)
    assert not make_fit(broken, tmp_path)
    assert (tmp_path / "broken" / "offline-run-20260101_000000-a" / "run-a.wandb").exists()
    assert paths_by_run(tmp_path) == {}
    assert "run-a.wandb has no records, as its run was killed: moved to" in caplog.text


def test_fragments_are_found_by_run_the_earliest_first(tmp_path):
    names = ["offline-run-20260101_000010-a", "run-20260101_000005-a", "offline-run-20260101_1-b"]
    for name in names:
        fragment(tmp_path, name, HEADER)
    (tmp_path / "wandb" / "latest-run").symlink_to(tmp_path / "wandb" / names[0])
    found = {run: [p.parent.name for p in paths] for run, paths in paths_by_run(tmp_path).items()}
    assert found == {"a": [names[1], names[0]], "b": [names[2]]}


@pytest.mark.parametrize(("age", "ended", "running"), [(10, 0, 1), (1000, 0, 0), (10, 1, 0)])
def test_a_file_that_rests_or_was_closed_has_no_writer(tmp_path, age, ended, running):
    some = fragment(tmp_path, "offline-run-20260101_000000-a", HEADER, ended=bool(ended))
    modified = some.path.stat().st_mtime - age
    os.utime(some.path, (modified, modified))
    assert some.is_running == bool(running)


def test_online_runs_and_marked_ones_are_uploaded(tmp_path):
    online = fragment(tmp_path, "run-20260101_000000-a", HEADER)
    offline = fragment(tmp_path, "offline-run-20260101_000000-b", HEADER)
    assert online.is_uploaded
    assert not offline.is_uploaded
    offline.path.with_suffix(".wandb.synced").touch()
    assert offline.is_uploaded

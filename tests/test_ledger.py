"""The ledger: a line for every message, whatever crashes and whoever sends."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from fedstill.bundle import Bundle
from fedstill.cli import invoke
from fedstill.deployment.ledger import OTHERS, Entry, Ledger, now, record, totals
from fedstill.deployment.messages import facts
from fedstill.errors import InputError, RunError

MODEL = Bundle(
    {"model": {"w": torch.zeros(3, 4), "n": torch.zeros(2, dtype=torch.int64)}}, {"examples": 7, "loss": 0.5}
)


def entry(message: Bundle = MODEL, **more: object) -> Entry:
    given = {"time": now(), "run": "skin", "round": 3, "task": "local", "direction": "out", "facts": facts(message)}
    return Entry(**{**given, **more})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kept" / "ledger.jsonl"


def test_what_is_recorded_is_read_back(path):
    wanted = [entry(), entry(direction="in", refused="the message is larger than the site's policy takes")]
    for each in wanted:
        record(path, each)
    assert Ledger.open(path) == Ledger(tuple(wanted))


def test_a_line_says_what_was_in_the_message(path):
    record(path, entry())
    (line,) = path.read_text().splitlines()
    told = json.loads(line)
    content = MODEL.to_bytes()
    assert told["bytes"] == len(content)
    assert told["sha256"] == hashlib.sha256(content).hexdigest()
    assert told["groups"] == {"model": {"tensors": 2, "elements": 14, "bytes": 64, "types": ["float32", "int64"]}}
    assert told["numbers"] == {"examples": 7, "loss": 0.5}
    assert told["time"].endswith("Z")
    assert (told["run"], told["round"], told["task"], told["direction"]) == ("skin", 3, "local", "out")
    assert told["refused"] is None


def test_no_ledger_is_an_empty_one(path):
    assert Ledger.open(path) == Ledger()


def test_folder_and_file_are_the_site_s_alone(path):
    record(path, entry())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(InputError, match="lets other users in"):
        record(path, entry())
    assert len(Ledger.open(path).entries) == 1


def test_a_line_cut_short_anywhere_is_no_record_and_takes_none_with_it(path):
    record(path, entry(round=1))
    record(path, entry(round=2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        rounds_read = [each.round for each in Ledger.open(path).entries]
        assert rounds_read == ([1, 2] if cut == len(whole) else [1])
        if cut % 40 and cut < len(whole) - 1:
            continue  # a write sees to the disk, which takes its time
        record(path, entry(round=3))
        found = Ledger.open(path)
        # all but its end was written: then the line is whole
        assert [each.round for each in found.entries] == ([1, 2, 3] if cut >= len(whole) - 1 else [1, 3])
        assert found.damaged == (first < cut < len(whole) - 1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"time": 1}',
        b'{"bytes": 1e400, "sha256": "", "groups": {}, "numbers": {}}',
        b'{"bytes": 1, "sha256": "", "groups": [], "numbers": {}}',
        b'{"bytes": 1, "sha256": "", "groups": {}, "numbers": {"a": []}}',
    ],
)
def test_a_line_that_somebody_else_wrote_is_counted_and_passed_over(path, line):
    record(path, entry())
    with path.open("ab") as file:
        file.write(line + b"\n")
    record(path, entry())
    found = Ledger.open(path)
    assert len(found.entries) == 2
    assert found.damaged == 1


def test_numbers_that_are_not_finite_are_kept(path):
    record(path, entry(Bundle({}, {"loss": float("nan"), "rate": float("-inf")})))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["numbers"] == {"loss": "nan", "rate": "-inf"}
    (found,) = Ledger.open(path).entries
    assert str(found.facts.numbers["loss"]) == "nan"
    assert found.facts.numbers["rate"] == -float("inf")


def test_a_stranger_s_names_neither_fill_the_disk_nor_reach_the_terminal(path):
    names = [f"\x1b[2J\n{'x' * 1000}{index}" for index in range(3000)]
    hostile = Bundle(
        {name: {} for name in names} | {"model": {"w": torch.zeros(5)}}, {f"n{index}": 1.0 for index in range(3000)}
    )
    record(path, entry(hostile, run="r\x1b\n" * 1000, task="t" * 10_000, direction="in", refused="no\x1b[2J"))
    assert len(path.read_bytes()) < 600_000
    assert path.read_bytes().count(b"\n") == 1
    assert all(byte == 10 or 32 <= byte < 127 for byte in path.read_bytes())
    (found,) = Ledger.open(path).entries
    assert found.facts.groups[OTHERS].elements == 5
    assert found.facts.numbers[OTHERS] == 2000
    assert found.run.isprintable()


def test_what_cannot_be_written_down_is_an_error(path, monkeypatch):
    record(path, entry())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedstill.output.os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        record(path, entry())
    (path.parent / "folder").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        record(path.parent / "folder", entry())


def _write(path: Path, writer: int) -> None:
    for number in range(20):
        record(path, entry(round=100 * writer + number))


@pytest.mark.slow
def test_several_processes_write_at_once(path):
    context = get_context("spawn")
    writers = [context.Process(target=_write, args=(path, writer)) for writer in range(3)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(120)
        assert each.exitcode == 0
    found = Ledger.open(path)
    assert found.damaged == 0
    assert sorted(each.round for each in found.entries) == sorted(100 * w + n for w in range(3) for n in range(20))


def test_totals_are_of_what_left():
    images = Bundle().put({"examples": 7}, synthetic={"images": torch.zeros(2, 1, 2, 2), "labels": torch.zeros(2)})
    norms = Bundle().put(**{"model:a": {"w": torch.zeros(2)}, "model:b": {"w": torch.zeros(3)}})
    entries = [
        entry(),
        entry(),
        entry(images, refused="the site's policy lets no synthetic images leave"),
        entry(norms),
        entry(images, direction="in"),
    ]
    out = totals(entries, "out")
    assert set(out) == {"model weights", "numbers"}
    assert (out["model weights"].messages, out["model weights"].tensors, out["model weights"].elements) == (3, 6, 33)
    assert out["model weights"].bytes == 2 * 64 + 20
    assert out["model weights"].names == ("model", "model:a", "model:b")
    assert (out["numbers"].messages, out["numbers"].names) == (2, ("examples", "loss"))
    arrived = totals(entries, "in")
    assert set(arrived) == {"synthetic images", "numbers"}
    assert totals([replace(entries[4], refused="no")], "in") == arrived


def test_the_command_tells_it_in_plain_words(tmp_path, capsys):
    file = tmp_path / "site.toml"
    file.write_text('name = "a"\n')
    assert invoke(["site", "ledger", str(file)]) == 0
    assert "nothing was sent and nothing arrived" in capsys.readouterr().out
    path = tmp_path / "kept" / "ledger.jsonl"
    record(path, entry(direction="in", time="2026-11-22T01:38:00.123Z"))
    record(path, entry(time="2026-11-22T01:38:07.000Z"))
    record(path, entry(refused="the site's policy lets no synthetic images leave"))
    with path.open("ab") as torn:
        torn.write(b'{"time": \n')
    assert invoke(["site", "ledger", str(file), "--last", "2"]) == 0
    out, err = capsys.readouterr()
    size = len(MODEL.to_bytes())
    assert f"2026-11-22 01:38:07  out  skin, round 3, local: {size} B of model weights, numbers" in out
    assert "01:38:00" not in out
    assert "refused: the site's policy lets no synthetic images leave" in out
    assert f"left the site: 1 message, {size} B" in out
    assert "  model weights: in 1 message, 2 tensors of 14 values, 64 B" in out
    assert "1 line of" in err
    assert invoke(["site", "ledger", str(file), "--json", "--last", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["messages"]) == 1
    assert told["totals"]["out"]["model weights"]["elements"] == 14
    assert told["damaged"] == 1

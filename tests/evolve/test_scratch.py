"""A worker's scratch folder: gone with the worker however it ends, and nothing else is ever deleted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evolve import scratch
from evolve.errors import ScratchError
from evolve.scratch import Scratch, check_room, remove_left_overs

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname().replace("-", "_")
LOCK = "mergevolve.lock"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Scratch]:
    made = Scratch(tmp_path, "/searches/mine")
    yield made
    made.close()


def left_over(folder: Path) -> Path:
    """What a worker left that went down with its machine."""
    folder.mkdir()
    (folder / LOCK).write_text("{}")
    (folder / "candidate").mkdir()
    (folder / "candidate" / "model.safetensors").write_bytes(b"0" * 100)
    return folder


def wait_until_gone(folder: Path) -> None:
    for _ in range(1000):
        if not folder.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{folder} is still there")


def test_the_folder_says_whose_it_is(live: Scratch, tmp_path: Path) -> None:
    assert live.folder.parent == tmp_path
    assert re.fullmatch(rf"mergevolve-scratch-{re.escape(HOST)}-{os.getpid()}-\w+", live.folder.name)
    said = json.loads((live.folder / LOCK).read_text())
    assert said == {"pid": os.getpid(), "host": socket.gethostname(), "owner": "/searches/mine"}
    assert live.folder.stat().st_mode & 0o077 == 0


def test_what_is_placed_in_it_goes_whatever_happens(live: Scratch) -> None:
    with live.place("candidate") as path:
        assert not path.exists()
        path.mkdir()
        (path / "config.json").touch()
    assert not path.exists()
    with contextlib.suppress(RuntimeError), live.place("candidate") as path:
        path.mkdir()
        raise RuntimeError("the merge broke")
    assert not path.exists()
    assert live.folder.exists()


def test_it_goes_when_it_is_closed(tmp_path: Path) -> None:
    made = Scratch(tmp_path, "")
    made.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_with_a_process_that_is_killed(tmp_path: Path, number: int) -> None:
    code = (
        "import sys, time; from pathlib import Path; from evolve.scratch import Scratch\n"
        "made = Scratch(Path(sys.argv[1]), ''); (made.folder / 'candidate').mkdir()\n"
        "print(made.folder, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        folder = Path(process.stdout.readline().strip())
        assert (folder / "candidate").exists()
        process.send_signal(number)
    wait_until_gone(folder)


def test_left_overs_of_dead_workers_are_found_and_removed(live: Scratch, tmp_path: Path) -> None:
    dead = left_over(tmp_path / f"mergevolve-scratch-{HOST}-12-abc")
    assert remove_left_overs(tmp_path) == [dead]
    assert not dead.exists()
    assert list(tmp_path.iterdir()) == [live.folder]
    assert remove_left_overs(tmp_path) == []


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    prefix = f"mergevolve-scratch-{HOST}-"
    elsewhere = left_over(tmp_path / "precious")
    left_over(tmp_path / "mergevolve-scratch-another.machine-12-abc")
    left_over(tmp_path / f"mergevolve-scratch-{HOST}x-12-abc")
    (tmp_path / f"{prefix}1-link").symlink_to(elsewhere, target_is_directory=True)
    (tmp_path / f"{prefix}2-file").write_text("notes")
    (tmp_path / f"{prefix}3-unmarked").mkdir()
    (tmp_path / f"{prefix}3-unmarked" / "thesis.tex").write_text("important")
    before = sorted(tmp_path.rglob("*"))
    assert remove_left_overs(tmp_path) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_that_is_not_there_has_no_left_overs(tmp_path: Path) -> None:
    assert remove_left_overs(tmp_path / "later") == []
    made = Scratch(tmp_path / "later" / "still", "")
    assert made.folder.parent == tmp_path / "later" / "still"
    made.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScratchError, match=r"file: no scratch folder can be made there: .*--scratch DIR"):
        Scratch(tmp_path / "file", "")


def test_room_for_each_worker_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10_000_000_000})
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage)
    check_room(tmp_path / "later", 5_000_000_000, 2, "")
    message = (
        r"later: 3 merged models at a time need 15.00 GB of disk, and 10.00 GB are free; make room, name "
    )
    with pytest.raises(ScratchError, match=message + r"another place with --scratch DIR, or take fewer "):
        check_room(tmp_path / "later", 5_000_000_000, 3, "")


def test_what_the_other_workers_of_a_search_hold_counts_as_theirs(
    live: Scratch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1500})
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: usage)
    with live.place("candidate") as path:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"0" * 1000)
        check_room(tmp_path, 1000, 2, "/searches/mine")
        with pytest.raises(ScratchError):
            check_room(tmp_path, 1000, 2, "/searches/another")

"""The storage path: whose folder it is, one driver at a time, frozen settings, whole files."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from evolve.errors import SearchChangedError, StorageError, StorageLockedError
from evolve.storage import StoragePath, write_atomically


def differences(old: str, new: str) -> Sequence[str]:
    return [] if old == new else [f"{old} -> {new}"]


def test_a_new_folder_is_made_and_can_be_locked_again_after_release(tmp_path: Path) -> None:
    storage = StoragePath(tmp_path / "deep" / "search")
    with storage.lock():
        assert storage.folder.is_dir()
    with storage.lock():
        pass


def test_a_second_driver_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from evolve.storage import StoragePath\n"
        "with StoragePath(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    storage = StoragePath(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(
            StorageLockedError, match=rf"another search is running on .*\(process {other.pid} on "
        ):
            storage.lock()
        other.kill()
    with storage.lock():  # the kernel freed it
        pass


def test_other_peoples_folders_and_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        StorageError, match=r"not empty and no storage path .*holds thesis.tex, but no search.yml"
    ):
        StoragePath(tmp_path).lock()
    with pytest.raises(StorageError, match="is a file; the storage path has to be a folder"):
        StoragePath(tmp_path / "thesis.tex").lock()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write to the storage path /proc/nowhere"):
        StoragePath(Path("/proc/nowhere")).lock()


def test_changed_settings_are_refused_with_the_differences(tmp_path: Path) -> None:
    storage = StoragePath(tmp_path)
    storage.freeze("seed: 1", differences)
    storage.freeze("seed: 1", differences)
    with pytest.raises(SearchChangedError, match=r"undo these changes .*\n  seed: 1 -> seed: 2") as caught:
        storage.freeze("seed: 2", differences)
    assert caught.value.differences == ("seed: 1 -> seed: 2",)
    assert storage.search_file.read_text() == "seed: 1"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "best_config.yaml"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*best_config.yaml: File too large"):
            write_atomically(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["best_config.yaml"], (
        "nothing half-written is left"
    )

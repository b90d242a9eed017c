"""An engine of vLLM for each folder, in a process of its own, against transformers."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fitness.errors import ModelError
from fitness.suite import SuiteSpec
from fitness.transformers_folders import TransformersFolders
from fitness.vllm_folders import VllmFolders
from fitness.vllm_settings import VllmSettings
from tests.fitness.conftest import save_tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="needs vLLM, which scripts/test installs"
    ),
]

_ROOT = Path(__file__).parents[2]
_TASKS = [("tiny_say", "exact_match,whole"), "tiny_pick"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a shape that vLLM runs."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    return save_tiny_llama(tmp_path_factory.mktemp("vllm"), max_position_embeddings=512, **shape)


@pytest.fixture
def scorer(
    folder: Path, make_suite: Callable[..., SuiteSpec], monkeypatch: pytest.MonkeyPatch
) -> VllmFolders:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return VllmFolders(folder, make_suite(*_TASKS), VllmSettings(max_num_seqs=32), dtype="float32")


def test_a_folder_scores_as_with_transformers_and_no_engine_stays(
    scorer: VllmFolders, folder: Path, make_suite: Callable[..., SuiteSpec]
) -> None:
    other = TransformersFolders(folder, make_suite(*_TASKS), dtype="float32", batch_size=32)
    assert scorer.suite_digest == other.suite_digest
    for ours, theirs in zip(
        scorer.score(folder, "search").tasks, other.score(folder, "search").tasks, strict=True
    ):
        differing = sum(a != b for a, b in zip(ours.items, theirs.items, strict=True))
        assert differing == 0, f"{ours.task}: {differing} of {len(ours.items)} items differ in fp32"
    assert scorer.forward_s > 0
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_folder_that_vllm_cannot_read_is_told(scorer: VllmFolders, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM starts from safetensors files, and there are none"):
        scorer.score(save_without_weights(tmp_path), "search")


def save_without_weights(folder: Path) -> Path:
    save_tiny_llama(folder)
    (folder / "model.safetensors").unlink()
    return folder


def test_a_killed_worker_takes_its_engine_along(folder: Path, task_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fitness.suite import SuiteSpec, TaskSpec\n"
        "from fitness.vllm_folders import VllmFolders; from fitness.vllm_settings import VllmSettings\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    suite = SuiteSpec(tasks=(TaskSpec(name='tiny_pick'),), search_paths=(sys.argv[2],))\n"
        "    VllmFolders(folder, suite, VllmSettings(), dtype='float32').score(folder, 'search')\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(task_folder)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process = psutil.Process(worker.pid)
    engines: list[psutil.Process] = []
    while not engines:
        assert worker.poll() is None
        time.sleep(0.1)
        engines = [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    gone, alive = psutil.wait_procs(engines, timeout=120)
    assert gone
    assert not alive

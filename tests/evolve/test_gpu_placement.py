"""A worker of several GPUs sees them, and so do the processes that its engine starts. Ray is told of GPUs
that are not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evolve.evaluator import Evaluation, Facts, WorkerContext
from evolve.ray_cluster import alive_nodes
from evolve.ray_slot import start_slot
from evolve.records import Split
from evolve.worker_plan import plan_share

ROOT = Path(__file__).parents[2]
_CODE = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


class Looking:
    """Says in its facts which devices a process of its own sees."""

    def prepare(self) -> Facts:
        found = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
        return Facts(
            device="cuda",
            threads=1,
            batch_size=1,
            memory_bytes=0,
            probe_s=0.0,
            search_items=0,
            suite_digest=found.stdout.strip(),
        )

    def set_batch_size(self, batch_size: int) -> None:
        raise NotImplementedError

    def evaluate(self, recipe: Mapping[str, Any], split: Split) -> Evaluation:
        raise NotImplementedError


def look(context: WorkerContext) -> Looking:
    return Looking()


def main() -> None:
    """Two workers of two GPUs each, of four that Ray is told to have."""
    import ray

    ray.init("local", num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
    (node,) = alive_nodes()
    share = plan_share([node], num_workers=None, device=None, processes_per_worker=2)
    assert share.fitting(node) == 2
    slots = [
        start_slot(f"worker-{i}", node, share, look, logs=None, batch_size=None, limit_s=60.0)
        for i in range(2)
    ]
    found = ray.get([slot.call for slot in slots])
    print(json.dumps([prepared.facts.suite_digest for prepared in found]), flush=True)
    ray.shutdown()


def test_each_worker_and_its_processes_see_the_gpus_of_one_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.evolve.test_gpu_placement"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == ["0,1", "2,3"]


if __name__ == "__main__":
    main()

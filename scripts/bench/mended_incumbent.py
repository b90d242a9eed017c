"""Starts mergekit-evolve 0.1.5 on today's libraries, mended from outside: its files are left as they are.

Run as ``python -m mended_incumbent TIMES.json [mergekit-evolve arguments]`` with this folder on PYTHONPATH
(Ray workers import it too). Every generation's wall time is written to TIMES.json. What has to be mended,
each seen as a crash:

- lm-eval 0.4.13 imports its vLLM backend lazily, the incumbent names it as an attribute;
- Ray must believe in GPUs, and lm-eval's model must be told that there is none;
- ``torch.cpu.empty_cache`` does not exist;
- pydantic 2.14 refuses to build the in-memory return task.

``MENDED_BATCH_SIZE`` also mends the batch size, which the incumbent ignores in memory (one item at a time).
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any


def mend() -> None:
    """Runs in the driver and in every Ray worker, before the incumbent is imported."""
    import lm_eval.models
    import lm_eval.models.huggingface
    import torch

    torch.set_num_threads(1)
    stub = types.ModuleType("lm_eval.models.vllm_causallms")
    stub.VLLM = type("VLLM", (), {})  # type: ignore[attr-defined]
    sys.modules[stub.__name__] = stub
    lm_eval.models.vllm_causallms = stub
    torch.cpu.empty_cache = lambda: None  # type: ignore[attr-defined]

    language_model = lm_eval.models.huggingface.HFLM
    original = language_model.__init__

    def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["device"] = "cpu"
        if "MENDED_BATCH_SIZE" in os.environ:
            kwargs["batch_size"] = int(os.environ["MENDED_BATCH_SIZE"])
        original(self, *args, **kwargs)

    language_model.__init__ = on_cpu

    import mergekit.plan

    return_tensor = mergekit.plan.ReturnTensor
    mergekit.plan.ReturnTensor = return_tensor.model_construct


def main() -> None:
    times_file = Path(sys.argv.pop(1))
    workers = int(os.environ.get("MENDED_WORKERS", "2"))
    import ray

    mend()
    hook = {"worker_process_setup_hook": "mended_incumbent.mend"}
    ray.init(address="local", num_cpus=workers, num_gpus=workers, include_dashboard=False, runtime_env=hook)
    from mergekit.evo.strategy import ActorPoolEvaluationStrategy
    from mergekit.scripts.evolve import main as incumbent

    generations: list[dict[str, float]] = []
    evaluate = ActorPoolEvaluationStrategy.evaluate_genotypes

    def timed(self: Any, genotypes: list[Any]) -> Any:
        started = time.monotonic()
        results = evaluate(self, genotypes)
        generations.append({"candidates": len(genotypes), "wall_s": time.monotonic() - started})
        times_file.write_text(json.dumps(generations))
        return results

    ActorPoolEvaluationStrategy.evaluate_genotypes = timed
    incumbent()


if __name__ == "__main__":
    main()

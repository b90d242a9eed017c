"""One vLLM engine in a process of its own: `python -m tests.fitness.vllm_runner '{"start": FOLDER, ...}'`.

Ends with one line of JSON: results for each model that was loaded, and how wrong streams were refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fitness.errors import FitnessError
from fitness.suite import SuiteSpec, TaskSpec
from fitness.vllm_backend import VllmBackend
from fitness.vllm_engine import StoredTensors
from fitness.vllm_settings import VllmSettings


def main(start: str, models: list[str], tasks: list[tuple[str, str]], folder: str) -> dict[str, Any]:
    suite = SuiteSpec(
        tasks=tuple(TaskSpec(name=name, metric=metric) for name, metric in tasks), search_paths=(folder,)
    )
    backend = VllmBackend(Path(start), suite, VllmSettings(max_num_seqs=32), dtype="float32", pads=True)
    found: dict[str, Any] = {"digest": backend.suite_digest, "results": []}
    for model in models:
        backend.load(StoredTensors(Path(model)))
        found["results"].append(_results(backend))
    found["refused"] = [_refusal(backend, spoilt(Path(start))) for spoilt in (_renamed, _cut, _torn)]
    found["unloaded"] = _message(lambda: backend.score("search"))
    backend.load(StoredTensors(Path(models[0])))
    found["again"] = _results(backend)
    return found


def _results(backend: VllmBackend) -> list[dict[str, Any]]:
    return [{"value": task.value, "items": task.items} for task in backend.score("search").tasks]


def _renamed(folder: Path) -> Iterator[tuple[str, Any]]:
    for name, tensor in StoredTensors(folder):
        yield name.replace("layers.1.self_attn.q_proj", "layers.7.self_attn.q_proj"), tensor


def _cut(folder: Path) -> Iterator[tuple[str, Any]]:
    for name, tensor in StoredTensors(folder):
        yield name, tensor[:-1] if name == "model.norm.weight" else tensor


def _torn(folder: Path) -> Iterator[tuple[str, Any]]:
    for place, entry in enumerate(StoredTensors(folder)):
        if place == 5:
            raise RuntimeError("the merge broke")
        yield entry


def _refusal(backend: VllmBackend, stream: Iterator[tuple[str, Any]]) -> str:
    return _message(lambda: backend.load(stream))


def _message(action: Callable[[], object]) -> str:
    try:
        action()
    except (FitnessError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))), flush=True)

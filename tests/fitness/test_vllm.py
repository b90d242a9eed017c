"""A real vLLM engine against the resident transformers model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitness.suite import SuiteSpec
from fitness.transformers_backend import TransformersBackend
from tests.fitness.conftest import save_tiny_llama

_ROOT = Path(__file__).parents[2]
_TASKS = [
    ("tiny_say", "exact_match,whole"),
    ("tiny_pick", "acc,none"),
    ("tiny_next", "perplexity,none"),
    ("tiny_text", "bits_per_byte,none"),
]

with_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM, which scripts/test installs"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Models of a shape that vLLM runs: the first is the deepest, on which the engine starts."""
    made = tmp_path_factory.mktemp("vllm")
    shape = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    return [
        save_tiny_llama(made / str(layers), seed=layers, num_hidden_layers=layers, **shape)
        for layers in (4, 2, 3)
    ]


@pytest.fixture(scope="module")
def found(folders: list[Path], task_folder: Path) -> dict[str, Any]:
    options = {
        "start": str(folders[0]),
        "models": [str(folder) for folder in folders],
        "tasks": _TASKS,
        "folder": str(task_folder),
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.fitness.vllm_runner", json.dumps(options)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return dict(json.loads(process.stdout.splitlines()[-1]))


@with_vllm
@pytest.mark.slow
def test_both_backends_give_the_same_items_at_any_depth(
    found: dict[str, Any],
    folders: list[Path],
    make_suite: Callable[..., SuiteSpec],
    weights: Callable[[Path], Any],
) -> None:
    for folder, theirs in zip(folders, found["results"], strict=True):
        backend = TransformersBackend(folder, make_suite(*_TASKS), dtype="float32", batch_size=32)
        assert found["digest"] == backend.suite_digest
        backend.load(weights(folder))
        for ours, other in zip(backend.score("search").tasks, theirs, strict=True):
            assert other["value"] == pytest.approx(ours.value, rel=1e-4)
            if ours.task in ("tiny_say", "tiny_pick"):
                differing = sum(a != b for a, b in zip(ours.items, other["items"], strict=True))
                assert differing == 0, f"{ours.task}: {differing} of {len(ours.items)} items differ in fp32"


@with_vllm
@pytest.mark.slow
def test_the_weights_of_the_last_model_leave_nothing_behind(found: dict[str, Any]) -> None:
    assert found["results"][0] != found["results"][1]
    assert found["again"] == found["results"][0]


@with_vllm
@pytest.mark.slow
def test_streams_that_do_not_fit_are_refused_and_the_engine_takes_the_next(found: dict[str, Any]) -> None:
    renamed, cut, torn = found["refused"]
    assert renamed.startswith("ModelError: weights do not fit the model in vLLM:")
    assert "model.layers.7.self_attn.q_proj.weight: the model has no such tensor" in renamed
    assert "model.layers.1.self_attn.q_proj.weight: missing from the stream" in renamed
    assert "model.norm.weight: shape (63,), expected (64,)" in cut
    assert torn == "RuntimeError: the merge broke"
    assert found["unloaded"] == "ModelError: no weights are loaded"

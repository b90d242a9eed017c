"""The frozen search file says everything, reads back the same, and shows what changed."""

from __future__ import annotations

from typing import Any

import pytest

from genome import diff_search_files, frozen_search_file, parse_search_file
from merge_engine.spec import dump_yaml, load_yaml

FULL: dict[str, Any] = {
    "genome": {
        "models": ["a", "b", "c"],
        "merge_method": "dare_ties",
        "base_model": "base",
        "tokenizer_source": "union",
        "layer_granularity": 4,
        "normalize": False,
        "allow_negative_weights": True,
        "smooth": True,
        "filters": ["self_attn", "mlp"],
        "bounds": {"density": [0.25, 1], "lambda": [0.1, 1 / 3]},
        "dtype": "float32",
    },
    "tasks": ["one", {"name": "two", "weight": -2, "metric": "f1,strict"}],
    "holdout": {"tasks": ["three"]},
    "optimizer": {"name": "sep-cma", "popsize": 6, "sigma0": 0.3, "restarts": 1},
    "scheduler": "async",
    "budget": {"candidates": 50, "hours": 0.5},
    "limit": 20,
    "num_fewshot": 0,
    "shuffle": True,
    "random_init": True,
    "apply_chat_template": False,
    "fewshot_as_multiturn": False,
    "initial": ["winner.yml"],
    "vllm": {
        "dtype": "float16",
        "max_model_len": 512,
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 2,
        "max_num_seqs": 64,
        "enforce_eager": True,
        "engine": {"swap_space": 1},
    },
}
SMALL: dict[str, Any] = {"genome": {"models": ["a", "b"], "merge_method": "linear"}, "tasks": ["one"]}


@pytest.mark.parametrize("data", [FULL, SMALL, {**SMALL, "holdout": 0.5}], ids=["full", "small", "share"])
def test_a_frozen_search_file_reads_back_the_same(data: dict[str, Any]) -> None:
    search_file = parse_search_file(dump_yaml(data))
    frozen = frozen_search_file(search_file)
    assert parse_search_file(dump_yaml(frozen)) == search_file
    assert load_yaml(dump_yaml(frozen)) == frozen


def test_every_default_is_written_out() -> None:
    frozen = frozen_search_file(parse_search_file(dump_yaml(SMALL)))
    assert set(frozen) == set(FULL)
    for part in ("genome", "optimizer"):
        written = frozen[part]
        assert isinstance(written, dict)
        assert set(written) == set(FULL[part])
    assert frozen["genome"] == {
        "models": ["a", "b"],
        "merge_method": "linear",
        "base_model": None,
        "tokenizer_source": None,
        "layer_granularity": 0,
        "normalize": True,
        "allow_negative_weights": False,
        "smooth": False,
        "filters": [],
        "bounds": {"weight": [0.0, 1.0]},
        "dtype": None,
    }


def test_equal_search_files_have_no_differences_however_they_are_written() -> None:
    spelled = {**SMALL, "tasks": [{"name": "one", "weight": 1}], "limit": None, "shuffle": False}
    assert diff_search_files(parse_search_file(dump_yaml(SMALL)), parse_search_file(dump_yaml(spelled))) == []


def test_differences_name_place_old_and_new() -> None:
    other = {
        **SMALL,
        "genome": {"models": ["a", "x", "c"], "merge_method": "linear"},
        "limit": 5,
        "holdout": 0.5,
    }
    old, new = parse_search_file(dump_yaml(SMALL)), parse_search_file(dump_yaml(other))
    assert diff_search_files(old, new) == [
        "genome.models[1]: 'b' -> 'x'",
        "limit: none -> 5",
        "genome.models[2]: none -> 'c'",
        "holdout.share: none -> 0.5",
    ]
    assert "genome.models[2]: 'c' -> none" in diff_search_files(new, old)

"""What `--vllm` cannot do is said before anything starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evolve.errors import PreflightError
from evolve.options import SearchOptions
from evolve.preflight import inspect
from tests.evolve import tiny

pytest.importorskip("vllm", reason="needs vLLM, which scripts/test installs")


@pytest.fixture
def options(tmp_path: Path) -> SearchOptions:
    tiny.write_models(tmp_path)
    tiny.write_tasks(tmp_path / "tasks")
    search_file = tmp_path / "search.yml"
    search_file.write_text(tiny.search_text(tmp_path))
    return SearchOptions(
        search_file=search_file,
        storage_path=tmp_path / "run",
        task_search_paths=(str(tmp_path / "tasks"),),
        vllm=True,
    )


def problems(options: SearchOptions) -> str:
    with pytest.raises(PreflightError) as caught:
        inspect(options)
    return str(caught.value)


def over_two(options: SearchOptions) -> None:
    data = yaml.safe_load(options.search_file.read_text())
    options.search_file.write_text(yaml.safe_dump({**data, "vllm": {"tensor_parallel_size": 2}}))


def test_engines_over_several_devices_are_fine(options: SearchOptions) -> None:
    over_two(options)
    assert inspect(options).processes == 2
    assert inspect(replace(options, vllm=False)).processes == 1


@pytest.mark.parametrize(("gpus", "workers"), [(None, None), (2, 1), (4, 2), (5, 2)])
def test_gpus_are_given_to_engines_over_several(
    options: SearchOptions, gpus: int | None, workers: int | None
) -> None:
    over_two(options)
    assert replace(options, num_gpus=gpus).wanted_workers(inspect(options).processes) == workers


def test_too_few_gpus_for_one_engine_are_refused(options: SearchOptions) -> None:
    over_two(options)
    message = problems(replace(options, num_gpus=1))
    assert "--num-gpus 1: a worker takes 2 GPUs (vllm.tensor_parallel_size)" in message
    assert "--num-gpus 2, or a multiple of it" in message


def test_a_quantised_source_is_refused_by_name(options: SearchOptions) -> None:
    config_file = options.search_file.parent / "left" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    message = problems(options)
    assert "left: its weights are quantised (awq): vLLM packs them once and cannot be given others" in message
    assert "score it with --on-disk, or without --vllm" in message


def test_engine_settings_that_would_break_a_promise_are_refused(options: SearchOptions) -> None:
    data = yaml.safe_load(options.search_file.read_text())
    data["vllm"] = {"engine": {"quantization": "fp8"}}
    options.search_file.write_text(yaml.safe_dump(data))
    assert "vllm.engine: vllm settings that the search decides itself: quantization" in problems(options)

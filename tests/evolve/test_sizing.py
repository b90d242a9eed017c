"""What a worker needs and how long a candidate takes, by arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.forecast import characters_per_token, forecast, model_size, workload
from evolve.machine import CORE, Gpu, Machine, gpu_speed
from evolve.options import SearchOptions
from evolve.preflight import Ready, inspect
from evolve.sizing import ModelSize, Workload, duration, need, parts
from fitness.batching import ModelFacts
from fitness.suite import SuiteSpec, TaskSpec
from fitness.task_size import TaskSize, task_sizes
from tests.evolve import tiny

# As Llama 2 7B, four of which are merged.
SEVEN_B = ModelSize(
    parameters=6_738_000_000,
    embeddings=262_000_000,
    largest=131_000_000,
    held=6_738_000_000,
    sources=4,
    source_bytes=4 * 13_476_000_000,
    facts=ModelFacts(layers=32, hidden_size=4096, kv_size=4096, vocab_size=32_000, weight_bytes=2),
)
WORK = Workload(texts=300, prompt_tokens=200, answer_tokens=60, longest_tokens=500)


def test_a_worker_needs_weights_and_programs_and_gives_batches_what_is_left() -> None:
    lean = need(SEVEN_B, WORK, backend="transformers", on_gpu=False, memory_bytes=10**9)
    assert lean.rows == 1
    assert lean.weights_bytes == 2 * SEVEN_B.parameters
    assert lean.host_bytes == lean.device_bytes == lean.least_device_bytes > lean.weights_bytes + 0.7e9
    roomy = need(SEVEN_B, WORK, backend="transformers", on_gpu=False, memory_bytes=64 * 10**9)
    assert 1 < roomy.rows <= 256
    assert roomy.device_bytes < 64e9
    assert need(SEVEN_B, WORK, backend="transformers", on_gpu=False, memory_bytes=10**13).rows == 256
    given = need(SEVEN_B, WORK, backend="transformers", on_gpu=False, memory_bytes=10**13, rows=7)
    assert given.batch_bytes == 7 * given.row_bytes


def test_with_a_gpu_the_model_is_there_and_what_is_known_of_the_sources_is_not() -> None:
    found = need(SEVEN_B, WORK, backend="transformers", on_gpu=True, memory_bytes=80 * 10**9)
    assert found.weights_bytes < found.device_bytes < 80e9
    assert found.host_bytes == found.programs_bytes + found.prepared_bytes < 5e9
    assert "programs" not in parts(found)
    assert "13 GB weights" in parts(found)


def test_layouts_hold_every_model_and_candidates_on_the_disk_are_held_one_at_a_time() -> None:
    layouts = replace(SEVEN_B, held=2 * SEVEN_B.held)
    usual, paths, disk = (
        need(model, WORK, backend=backend, on_gpu=False, memory_bytes=10**9)
        for model, backend in ((SEVEN_B, "transformers"), (layouts, "transformers"), (layouts, "disk"))
    )
    assert paths.device_bytes - usual.device_bytes == usual.weights_bytes
    assert disk.weights_bytes == usual.weights_bytes


def test_quantised_weights_take_their_bits_but_for_embeddings() -> None:
    whole, *smaller = (
        need(SEVEN_B, WORK, backend="disk", on_gpu=True, memory_bytes=10**9, bits=bits).weights_bytes
        for bits in (None, 8, 4)
    )
    kept = SEVEN_B.embeddings * SEVEN_B.facts.weight_bytes
    assert smaller == [kept + (whole - kept) // 2, kept + (whole - kept) // 4]


def test_processes_of_an_engine_have_a_part_of_the_weights_each_and_share_merges_on_gpus_only() -> None:
    one, two = (
        need(SEVEN_B, WORK, backend="vllm", on_gpu=True, memory_bytes=10**11, rows=8, processes=count)
        for count in (1, 2)
    )
    assert (two.weights_bytes, two.row_bytes) == (one.weights_bytes // 2, one.row_bytes // 2)
    assert (two.merge_bytes, two.prepared_bytes) == (one.merge_bytes, one.prepared_bytes)
    assert two.programs_bytes > one.programs_bytes + 10**9
    one, two = (
        need(SEVEN_B, WORK, backend="vllm", on_gpu=False, memory_bytes=10**11, rows=8, processes=count)
        for count in (1, 2)
    )
    assert (two.weights_bytes, two.row_bytes) == (one.weights_bytes, one.row_bytes)
    assert (two.merge_bytes, two.prepared_bytes) == (2 * one.merge_bytes, 2 * one.prepared_bytes)
    usual, twice = (duration(SEVEN_B, WORK, 8, CORE, merges=merges) for merges in (1, 2))
    assert (twice.merge_s, twice.answers_s) == (2 * usual.merge_s, usual.answers_s)


def test_a_candidate_takes_longer_with_more_of_anything_and_less_with_more_rows_and_devices() -> None:
    usual = duration(SEVEN_B, WORK, 64, CORE)
    assert usual.total_s == usual.merge_s + usual.prompts_s + usual.answers_s
    assert duration(SEVEN_B, replace(WORK, texts=600), 64, CORE).prompts_s == pytest.approx(
        2 * usual.prompts_s
    )
    assert duration(SEVEN_B, replace(WORK, answer_tokens=120), 64, CORE).answers_s > usual.answers_s
    assert duration(SEVEN_B, WORK, 8, CORE).answers_s > usual.answers_s
    assert duration(SEVEN_B, WORK, 64, CORE.times(2)).per_hour == pytest.approx(2 * usual.per_hour)
    wider = replace(SEVEN_B, source_bytes=2 * SEVEN_B.source_bytes)
    assert duration(wider, WORK, 64, CORE).merge_s == 2 * usual.merge_s


def test_prompts_take_two_operations_for_each_parameter_and_token() -> None:
    prompts_s = duration(SEVEN_B, replace(WORK, prompt_tokens=100), 64, CORE).prompts_s
    assert prompts_s * CORE.flops_per_s == pytest.approx(2 * 300 * 100 * 6.476e9, rel=0.02)


def test_gpus_are_known_by_name_and_an_unknown_one_counts_as_a_usual_one() -> None:
    assert gpu_speed("NVIDIA H100 80GB HBM3").flops_per_s > gpu_speed("NVIDIA A100-SXM4-80GB").flops_per_s
    assert gpu_speed("NVIDIA L40S") != gpu_speed("NVIDIA L4")
    assert gpu_speed("Somebody's first") == gpu_speed("NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize(("vocabulary", "expected"), [(108, 1.0), (32_000, 3.6), (128_000, 4.4)])
def test_larger_vocabularies_have_longer_tokens(vocabulary: int, expected: float) -> None:
    assert characters_per_token(vocabulary) == pytest.approx(expected, abs=0.05)


def test_what_is_not_known_of_tasks_is_taken_to_be_usual() -> None:
    known = TaskSize(items=100, characters=360.0, sequences=4, answer_tokens=0)
    work, guessed = workload([known], SEVEN_B)
    assert (work.texts, guessed, work.answer_tokens) == (400, False, 0)
    assert work.prompt_tokens == pytest.approx(100, rel=0.02)
    hidden = TaskSize(items=None, characters=None, sequences=1, answer_tokens=256)
    work, guessed = workload([known, hidden], SEVEN_B)
    assert guessed
    assert work.texts == 900
    assert work.longest_tokens == 456


def test_tasks_tell_their_size_as_far_as_their_files_do(tmp_path: Path) -> None:
    tiny.write_tasks(tmp_path)
    tasks = (TaskSpec(name="tiny_choice"), TaskSpec(name="tiny_answer"), TaskSpec(name="gsm8k"))
    suite = SuiteSpec(tasks=tasks, search_paths=(str(tmp_path),), holdout=0.25)
    choice, answer, remote = task_sizes(suite)
    assert (choice.items, choice.sequences, choice.answer_tokens) == (18, 2, 0)
    assert (answer.items, answer.sequences, answer.answer_tokens) == (18, 1, 3)
    assert choice.characters is not None
    assert (remote.items, remote.characters) == (None, None)
    limited = task_sizes(replace(suite, limit=5, num_fewshot=2))
    assert [size.items for size in limited] == [5, 5, 5]
    assert limited[0].characters == 3 * choice.characters
    assert task_sizes(replace(suite, limit=0.5))[0].items == 9


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_models(folder)
    tiny.write_tasks(folder / "tasks")
    return inspect(options(folder), yaml.safe_dump(yaml.safe_load(tiny.search_text(folder))))


def options(folder: Path, **others: Any) -> SearchOptions:
    search_path = (str(folder / "tasks"),)
    return SearchOptions(
        search_file=folder / "s.yml", storage_path=folder / "run", task_search_paths=search_path, **others
    )


def test_sizes_are_read_off_the_headers(ready: Ready) -> None:
    size = model_size(ready)
    assert size.parameters == size.held == 9_904
    assert size.embeddings == 2 * 17 * 16
    assert (size.sources, size.largest) == (3, 32 * 16)
    assert size.source_bytes == 3 * 2 * size.parameters


def test_a_machine_with_gpus_is_forecast_by_them(ready: Ready) -> None:
    gpus = (Gpu(name="NVIDIA A10", memory_bytes=24 * 10**9),) * 2
    machine = Machine(cores=8, free_bytes=64 * 10**9, gpus=gpus)
    found = forecast(ready, options(Path()), machine)
    assert (found.workers, found.device, found.need.on_gpu) == (2, "NVIDIA A10", True)
    without = forecast(ready, options(Path(), num_gpus=0), machine)
    assert (without.workers, without.device, without.need.on_gpu) == (8, "1 core", False)
    shared = forecast(ready, options(Path(), num_gpus=1, workers_per_gpu=3), machine)
    assert shared.workers == 3
    cluster = forecast(ready, options(Path(), ray_address="10.0.0.1:6379"), machine)
    assert cluster.workers is None
    assert cluster.per_hour == cluster.duration.per_hour


def test_matrix_units_make_cores_faster(ready: Ready) -> None:
    slow, fast = (
        forecast(ready, options(Path()), Machine(cores=2, free_bytes=10**10, matrix_unit=unit))
        for unit in (False, True)
    )
    assert fast.per_hour > slow.per_hour

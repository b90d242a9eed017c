"""Every kind of bad input, with its message, and all of it at once; and what is said when all is well."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve import outlook
from evolve.errors import FleetError, PreflightError
from evolve.evaluator import Facts
from evolve.forecast import forecast
from evolve.journal import JournalView
from evolve.machine import Gpu, Machine
from evolve.options import SearchOptions
from evolve.preflight import Ready, inspect
from merge_engine.checkpoint_header import CheckpointHeader, open_header
from tests.evolve import tiny
from tests.evolve.made import candidate, run_record

Edit = Callable[[dict], object]  # type: ignore[type-arg]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_models(folder)
    tiny.write_model(folder / "deeper", layers=6)
    tiny.write_model(folder / "wider", hidden=32)
    tiny.write_model(folder / "talkative", vocabulary=30)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    tiny.write_tasks(folder)
    return folder


@pytest.fixture
def check(models: Path, tasks: Path, tmp_path: Path) -> Callable[..., Ready]:
    """Inspect the tiny search file after an edit of its data; whatever happens, nothing new is on disk."""

    def run(edit: Edit = lambda data: None, **options: object) -> Ready:
        data = yaml.safe_load(tiny.search_text(models))
        edit(data)
        path = tmp_path / "search.yml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        given = SearchOptions(
            search_file=path, storage_path=tmp_path / "run", task_search_paths=(str(tasks),), **options
        )
        try:
            return inspect(given)
        finally:
            assert sorted(tmp_path.iterdir()) == [path]

    return run


def set_key(*path: object, value: object) -> Edit:
    def edit(data: dict) -> None:  # type: ignore[type-arg]
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return edit


def problems(check: Callable[..., Ready], edit: Edit = lambda data: None, **options: object) -> str:
    with pytest.raises(PreflightError) as caught:
        check(edit, **options)
    return str(caught.value)


def test_unknown_key(check: Callable[..., Ready]) -> None:
    assert "genome.layer_granularitty: unknown key" in problems(
        check, set_key("genome", "layer_granularitty", value=2)
    )


def test_value_out_of_range(check: Callable[..., Ready]) -> None:
    assert "optimizer.sigma0" in problems(check, set_key("optimizer", value={"sigma0": -1}))
    assert "genome.layer_granularity: -1 is out of range" in problems(
        check, set_key("genome", "layer_granularity", value=-1)
    )
    message = problems(check, set_key("optimizer", value={"popsize": 2}))
    assert "optimizer.popsize: 2 is out of range: allowed is a whole number of at least 4" in message


def test_unknown_task_with_the_nearest_name(check: Callable[..., Ready]) -> None:
    message = problems(check, set_key("tasks", 0, value="tiny_chioce"))
    assert "tasks[0]: 'tiny_chioce': no such task" in message
    assert "did you mean tiny_choice?" in message


def test_unknown_metric_with_those_there_are(check: Callable[..., Ready]) -> None:
    message = problems(check, set_key("tasks", 1, "metric", value="acc,none"))
    assert "tasks[1]: 'tiny_answer': has no metric 'acc,none'" in message
    assert "exact_match,none" in message


def test_missing_model(check: Callable[..., Ready], models: Path) -> None:
    message = problems(check, set_key("genome", "models", 1, value=str(models / "nowhere")))
    assert f"genome.models[1]: {models / 'nowhere'}: no such folder" in message


def test_a_folder_that_is_no_model(check: Callable[..., Ready], tasks: Path) -> None:
    message = problems(check, set_key("genome", "base_model", value=str(tasks)))
    assert "genome.base_model" in message
    assert "config.json" in message
    assert "Hugging Face model folder" in message


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("deeper", "deeper has 6"),
        ("wider", "shapes differ"),
        ("talkative", "the vocabularies differ"),
    ],
)
def test_models_that_do_not_fit(check: Callable[..., Ready], models: Path, model: str, expected: str) -> None:
    message = problems(check, set_key("genome", "models", 1, value=str(models / model)))
    assert "genome.models: " in message
    assert expected in message


def test_benchmark_as_objective(check: Callable[..., Ready]) -> None:
    task = {"name": "gsm8k", "metric": "exact_match,strict-match"}
    message = problems(check, set_key("tasks", 0, value=task))
    assert "tasks[0].name: 'gsm8k' is a benchmark's test set" in message
    assert "--i-understand-the-depths-of-the-evils-i-am-unleashing" in message
    assert check(set_key("tasks", 0, value=task), allow_benchmarks=True).suite.tasks[0].name == "gsm8k"


def test_chat_template_asked_for_where_there_is_none(check: Callable[..., Ready]) -> None:
    message = problems(check, set_key("apply_chat_template", value=True))
    assert "apply_chat_template: the tokenizer of" in message
    assert "set it to false" in message


def test_wandb_missing(check: Callable[..., Ready], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = problems(check, wandb=True)
    assert "--wandb: the package wandb is not installed (pip install 'mergevolve[wandb]')" in message


def test_task_search_path_that_is_no_folder(check: Callable[..., Ready], tmp_path: Path) -> None:
    text = tmp_path / "search.yml"
    text.write_text("genome: {models: [a, b], merge_method: linear}\ntasks: [tiny_choice]\n")
    with pytest.raises(PreflightError, match=r"--task-search-path: '/nowhere': .* not a folder"):
        inspect(
            SearchOptions(search_file=text, storage_path=tmp_path / "run", task_search_paths=("/nowhere",))
        )


def test_a_search_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="cannot be read: No such file"):
        inspect(SearchOptions(search_file=tmp_path / "none.yml", storage_path=tmp_path / "run"))


def test_everything_wrong_is_said_at_once(check: Callable[..., Ready], models: Path) -> None:
    def spoil(data: dict) -> None:  # type: ignore[type-arg]
        data["genome"]["colour"] = "blue"
        data["genome"]["models"][0] = str(models / "nowhere")
        data["genome"]["base_model"] = str(models / "gone")
        data["optimizer"] = {"sigma0": 0}
        data["tasks"][0] = "tiny_chioce"
        data["tasks"][1]["metric"] = "bleu,none"

    message = problems(check, spoil)
    assert "6 problems; nothing was started" in message
    for place in (
        "genome.colour",
        "genome.models[0]",
        "genome.base_model",
        "optimizer.sigma0",
        "tasks[0]",
        "tasks[1]",
    ):
        assert f"\n  {place}: " in message


@pytest.mark.parametrize("model", ["somebody/some-model", "./model+./adapter"])
def test_models_are_neither_fetched_nor_adapted_for_a_file_that_is_refused_anyhow(
    check: Callable[..., Ready], monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    def fetch(reference: str) -> CheckpointHeader:
        assert Path(reference).exists(), f"{reference} was worked for"
        return open_header(Path(reference))

    monkeypatch.setattr("evolve.search_models.open_source", fetch)

    def spoil(data: dict) -> None:  # type: ignore[type-arg]
        data["genome"]["models"][0] = model
        data["tasks"][0] = "tiny_chioce"

    assert "1 problem;" in problems(check, spoil)


def template(*models: Path, **changes: object) -> Edit:
    """In place of the genome: the mean of ``models``, the weight of the first one searched."""
    entries = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    entries[0]["parameters"] = {"weight": {"search": [0.0, 1.0], "every": 2}}

    def edit(data: dict) -> None:  # type: ignore[type-arg]
        del data["genome"]
        data["template"] = {"merge_method": "linear", "models": entries, **changes}

    return edit


def test_a_template_is_looked_at_as_a_genome_is(check: Callable[..., Ready], models: Path) -> None:
    ready = check(template(models / "left", models / "right"))
    assert ready.pattern == str(models / "left")
    assert ready.dtype == "bfloat16"
    assert len(ready.space.names) == 2
    text = outlook_text(ready)
    assert "template, 2 dimensions; `mergevolve explain` shows them" in text
    assert "CMA-ES over 2 reals" in text


def test_a_model_that_is_missing_in_a_template(check: Callable[..., Ready], models: Path) -> None:
    choice = {"choose": [str(models / "left"), str(models / "nowhere")]}
    entries = [
        {"model": choice, "parameters": {"weight": {"search": [0, 1]}}},
        {"model": str(models / "right")},
    ]
    message = problems(check, template(models / "left", models=entries, parameters={"weight": 1.0}))
    assert f"template.models[0].model.choose[1]: {models / 'nowhere'}: no such folder" in message


def test_models_of_a_template_fit_at_its_start(check: Callable[..., Ready], models: Path) -> None:
    message = problems(check, template(models / "left", models / "wider"))
    assert "at the start of the search: " in message
    assert "shapes differ" in message


def test_a_template_that_is_refused_at_its_start(check: Callable[..., Ready], models: Path) -> None:
    message = problems(check, template(models / "left", models / "right", base="x"))
    assert "template.base: unknown key" in message


def test_options_overrule_the_file(check: Callable[..., Ready]) -> None:
    ready = check(
        set_key("budget", value={"candidates": 30, "hours": 2}), max_fevals=40, timeout_s=60.0, popsize=9
    )
    assert (ready.max_fevals, ready.time_limit_s, ready.search_file.optimizer.popsize) == (40, 60.0, 9)
    ready = check(set_key("budget", value={"candidates": 30, "hours": 2}))
    assert (ready.max_fevals, ready.time_limit_s) == (30, 7200.0)
    assert check(set_key("budget", value={})).max_fevals == 100


GIGABYTES_10 = Machine(cores=2, free_bytes=10**10)


def outlook_text(
    ready: Ready, earlier: JournalView | None = None, machine: Machine = GIGABYTES_10, **options: Any
) -> str:
    given = SearchOptions(search_file=Path("search.yml"), storage_path=Path("demo-run"), **options)
    return "\n".join(
        outlook.before_start(ready, given.storage_path, earlier, forecast(ready, given, machine))
    )


def test_the_outlook_says_what_will_happen(check: Callable[..., Ready]) -> None:
    text = outlook_text(check())
    for expected in (
        "3 of 9.9 k parameters (bfloat16)",
        "task_arithmetic, 4 dimensions: weight in [0, 1.5]",
        "12: 5 baselines, samples, and the mean",
        "tiny_choice (acc,none), tiny_answer (exact_match,none)",
        "50% of each task's items, scored once at the end",
        "demo-run (a new search)",
    ):
        assert expected in text
    assert "warning" not in text


def test_the_outlook_says_what_resuming_will_do(check: Callable[..., Ready]) -> None:
    ready = check()

    def after(count: int) -> str:
        done = tuple(candidate(number) for number in range(count))
        return outlook_text(ready, JournalView(run=run_record(), candidates=done, holdout=()))

    assert "(goes on after 5 candidates)" in after(5)
    assert "(finished with 12 candidates; a larger --max-fevals extends it)" in after(12)


def test_the_outlook_warns(check: Callable[..., Ready]) -> None:
    assert "no items are held out" in outlook_text(check(set_key("holdout", value=None)))
    given = SearchOptions(search_file=Path("search.yml"), storage_path=Path("run"), num_workers=2)
    expected = replace(forecast(check(), given, GIGABYTES_10), mapped_bytes=9 * 10**9)
    (line,) = [
        line for line in outlook.before_start(check(), Path("run"), None, expected) if "warning" in line
    ]
    assert "the source files (9 GB) do not stay in memory beside the workers (1.4 GB)" in line
    assert "--num-workers" in line


def test_the_outlook_says_what_workers_need_and_how_fast_they_will_be(check: Callable[..., Ready]) -> None:
    ready = check()
    text = outlook_text(ready)
    assert re.search(r"memory +about 0.7\d? GB for each of 2 workers \(0.7 GB programs.*10 GB are free", text)
    assert "candidates an hour with 2 workers (1 core each; 36 texts of" in text
    assert "measured once the workers are ready" in text
    seen = JournalView(run=run_record(), candidates=(candidate(1), candidate(2)), holdout=())
    assert (
        "about 5,100 candidates an hour with 2 workers, by what the search has seen so far"
        in outlook_text(ready, seen)
    )
    cluster = outlook_text(ready, ray_address="10.0.0.1:6379")
    assert "GB for each worker (" in cluster
    assert "are free" not in cluster
    assert "candidates an hour with one worker (1 core;" in cluster


def test_a_search_that_no_worker_has_memory_for_is_refused(check: Callable[..., Ready]) -> None:
    ready, small = check(), Machine(cores=4, free_bytes=10**9)
    with pytest.raises(FleetError, match=r"each worker needs about 0.7 GB; --num-workers 1 fits"):
        outlook_text(ready, machine=small, num_workers=2)
    assert "for each of 1 worker (" in outlook_text(ready, machine=small)
    message = r"not enough memory: each worker needs about 0.7 GB, and 0.6 GB are free; close other programs"
    with pytest.raises(FleetError, match=message):
        outlook_text(ready, machine=Machine(cores=4, free_bytes=6 * 10**8))
    tiny_gpu = Machine(cores=4, free_bytes=10**10, gpus=(Gpu(name="Tiny", memory_bytes=10**8),))
    with pytest.raises(FleetError, match=r"of a GPU's memory \(.*\), and Tiny has 0.1 GB: take a larger one"):
        outlook_text(ready, machine=tiny_gpu)


def test_the_workers_line_estimates_the_time() -> None:
    fact = Facts(
        device="cpu",
        threads=1,
        batch_size=8,
        memory_bytes=900_000_000,
        probe_s=3.0,
        search_items=300,
        suite_digest="",
    )
    line = outlook.workers_ready((fact, replace(fact, probe_s=4.0)), 8, 12, 101)
    assert line == (
        "2 workers on cpu, 1 thread and 0.9 GB each, batches of 8, generations of 12; "
        "300 items take 4.0 s: about 3 min 24 s for 101 candidates"
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_without_what_they_need(
    check: Callable[..., Ready], monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setattr("fitness.quantisation.is_installed", lambda: False)
    message = problems(check, bits=bits, on_disk=True)
    assert f"--load-in-{bits}bit: the package bitsandbytes is not installed" in message
    assert "pip install 'mergevolve[quantized]'" in message
    monkeypatch.setattr("fitness.quantisation.is_installed", lambda: True)
    message = problems(check, bits=bits, on_disk=True, vllm=True)
    assert f"--load-in-{bits}bit: vLLM's engines score weights as they are merged" in message

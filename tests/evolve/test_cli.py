"""The commands: options of mergekit-evolve, refusals with their exit status, and what stays unloaded."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from evolve.cli import main
from evolve.cli.search import command as evolve
from evolve.options import SearchOptions
from evolve.storage import StoragePath
from tests.evolve import tiny
from tests.evolve.made import candidate, view, written

UPSTREAM = shlex.split(
    "--max-fevals 7 --vllm --strategy buffered --in-memory --num-gpus 2 --merge-cuda --trust-remote-code "
    "--allow-crimes --random-seed 5 --batch-size 3 --sigma0 0.25 --wandb --wandb-project p --wandb-entity e "
    "--task-search-path a --task-search-path b --i-understand-the-depths-of-the-evils-i-am-unleashing "
    "--no-save-final-model --reshard --timeout 60.5 --force-population-size 10"
)
HEAVY = ("torch", "transformers", "lm_eval", "ray", "matplotlib", "cma", "wandb", "datasets")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SearchOptions]:
    """The options that runs were started with, in place of the runs."""
    given: list[SearchOptions] = []

    def run(options: SearchOptions) -> int:
        given.append(options)
        return 0

    monkeypatch.setattr("evolve.run.run", run)
    return given


def invoke(command: Any, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_every_option_of_the_incumbent_is_taken(started: list[SearchOptions], tmp_path: Path) -> None:
    result = invoke(evolve, *UPSTREAM, "--storage-path", tmp_path, "search.yml")
    assert result.exit_code == 0, result.output
    assert started == [
        SearchOptions(
            search_file=Path("search.yml"),
            storage_path=tmp_path,
            max_fevals=7,
            timeout_s=60.5,
            seed=5,
            sigma0=0.25,
            popsize=10,
            batch_size=3,
            num_gpus=2,
            trust_remote_code=True,
            allow_crimes=True,
            vllm=True,
            allow_benchmarks=True,
            task_search_paths=("a", "b"),
            wandb=True,
            wandb_project="p",
            wandb_entity="e",
            save_final_model=False,
        )
    ]
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert [note.split()[1] for note in notes] == [
        "--merge-cuda",
        "--reshard",
        "--in-memory",
        "--strategy",
    ]
    assert all("is not needed" in note for note in notes)


def test_without_options_nothing_is_remarked(started: list[SearchOptions], tmp_path: Path) -> None:
    result = invoke(main, "search", "search.yml", "--storage-path", tmp_path)
    assert result.output == ""
    assert started == [SearchOptions(search_file=Path("search.yml"), storage_path=tmp_path)]


@pytest.mark.parametrize(("flag", "view"), [("--quiet", "quiet"), ("--progress", "live")])
def test_views(started: list[SearchOptions], tmp_path: Path, flag: str, view: str) -> None:
    invoke(evolve, "search.yml", "--storage-path", tmp_path, flag)
    assert started[0].view == view


@pytest.mark.parametrize(
    ("arguments", "expected", "noted"),
    [
        (["--on-disk"], {"on_disk": True}, ""),
        (["--no-in-memory"], {"on_disk": True}, ""),
        (["--on-disk", "--no-in-memory"], {"on_disk": True}, ""),
        (["--on-disk", "--scratch", "s"], {"on_disk": True, "scratch": Path("s")}, ""),
        (["--on-disk", "--load-in-8bit"], {"on_disk": True, "bits": 8}, ""),
        (["--load-in-4bit"], {"on_disk": True, "bits": 4}, "--load-in-4bit quantises weights when they are "),
        (["--scratch", "s"], {"scratch": Path("s")}, "--scratch is not needed: "),
        (
            ["--on-disk", "--strategy", "buffered"],
            {"on_disk": True, "workers_per_gpu": 2},
            "--strategy buffered: 2 workers share each GPU, so that one merges while another scores",
        ),
        (
            ["--on-disk", "--strategy", "buffered", "--workers-per-gpu", "3"],
            {"on_disk": True, "workers_per_gpu": 3},
            "--strategy buffered: 3 workers share each GPU",
        ),
        (["--strategy", "buffered"], {}, "--strategy buffered is not needed: "),
        (["--on-disk", "--strategy", "pool"], {"on_disk": True}, "--strategy pool is not needed: "),
        (["--on-disk", "-s", "serial"], {"on_disk": True}, "--strategy serial is not needed: "),
    ],
)
def test_where_candidates_are_merged(
    started: list[SearchOptions],
    tmp_path: Path,
    arguments: list[str],
    expected: dict[str, object],
    noted: str,
) -> None:
    result = invoke(evolve, "search.yml", "--storage-path", tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    assert started == [SearchOptions(search_file=Path("search.yml"), storage_path=tmp_path, **expected)]
    assert result.stderr.startswith(f"note: {noted}" if noted else "")
    assert len(result.stderr.splitlines()) == bool(noted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on-disk", "--in-memory"], "--in-memory and --on-disk: give one of the two"),
        (["--load-in-8bit", "--load-in-4bit"], "--load-in-8bit and --load-in-4bit: give one of the two"),
        (["--load-in-8bit", "--in-memory"], "--load-in-8bit: .*; leave --in-memory out"),
    ],
)
def test_contradictions_are_refused(
    started: list[SearchOptions], tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = invoke(evolve, "search.yml", "--storage-path", tmp_path, *arguments)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.stderr.split()))
    assert started == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-fevals", "0"),
        ("--sigma0", "0"),
        ("--sigma0", "1.5"),
        ("--timeout", "0"),
        ("--num-workers", "0"),
        ("--force-population-size", "3"),
        ("--strategy", "random"),
    ],
)
def test_options_out_of_range_are_refused(
    started: list[SearchOptions], tmp_path: Path, arguments: tuple[str, str]
) -> None:
    result = invoke(evolve, "search.yml", "--storage-path", tmp_path, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert started == []


def test_the_storage_path_is_required() -> None:
    assert "Missing option '--storage-path'" in invoke(evolve, "search.yml").stderr


def run_light(code: str, cwd: Path) -> list[str]:
    """Run code in a fresh interpreter and return the heavy libraries that it loaded."""
    root = Path(__file__).parents[2]
    report = f"\nimport sys\nprint('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}{report}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("loaded:")[1].split()


def test_help_loads_no_heavy_library(tmp_path: Path) -> None:
    code = "from evolve.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert run_light(code, tmp_path) == []


def test_a_refused_search_file_loads_no_heavy_library_and_writes_nothing(tmp_path: Path) -> None:
    text = "genome: {models: [./a, ./b], merge_method: lineal}\ntasks: [no_such_task_anywhere]\nlimits: 3\n"
    (tmp_path / "search.yml").write_text(text)
    code = (
        "from evolve.cli.search import command\n"
        "try: command(['search.yml', '--storage-path', 'run'])\n"
        "except SystemExit as error: assert error.code == 2, error.code"
    )
    assert run_light(code, tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["search.yml"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_models(folder / "models")
    tiny.write_tasks(folder / "tasks")
    return folder


def search(inputs: Path, storage: Path, text: str, *options: object) -> Result:
    path = storage.parent / "search.yml"
    path.write_text(text, encoding="utf-8")
    return invoke(evolve, path, "--storage-path", storage, "--task-search-path", inputs / "tasks", *options)


def test_all_problems_come_in_one_exit(inputs: Path, tmp_path: Path) -> None:
    text = tiny.search_text(inputs / "models").replace("tiny_choice", "tiny_chioce").replace("/left", "/lost")
    result = search(inputs, tmp_path / "run", text)
    assert result.exit_code == 2
    first, *problems = result.stderr.splitlines()
    assert first == f"error: {tmp_path / 'search.yml'}: 2 problems; nothing was started"
    assert [problem.split(":")[0].strip() for problem in problems] == ["tasks[0]", "genome.models[0]"]
    assert not (tmp_path / "run").exists()


def test_a_machine_without_room_for_the_workers_is_told_before_anything_is_written(
    inputs: Path, tmp_path: Path
) -> None:
    result = search(inputs, tmp_path / "run", tiny.search_text(inputs / "models"), "--num-workers", 9999)
    assert result.exit_code == 1
    assert re.search(r"error: 9999 workers do not fit on \d+ cores", result.stderr)
    assert not (tmp_path / "run").exists()


def kept_search(inputs: Path, storage: Path, scored_by: str = "transformers") -> str:
    """A storage path whose search is over the tiny models, with no worker ever started."""
    from genome.frozen import frozen_search_file
    from genome.parse import parse_search_file
    from merge_engine.spec import dump_yaml

    text = tiny.search_text(inputs / "models")
    journal = view(12)
    journal = replace(journal, run=replace(journal.run, inputs={"scored by": scored_by}))
    written(storage, journal).search_file.write_text(
        dump_yaml(frozen_search_file(parse_search_file(text))), encoding="utf-8"
    )
    return text


def test_a_changed_search_file_is_refused_with_the_difference(inputs: Path, tmp_path: Path) -> None:
    text = kept_search(inputs, tmp_path / "run").replace("layer_granularity: 2", "layer_granularity: 4")
    result = search(inputs, tmp_path / "run", text, "--random-seed", 3)
    assert result.exit_code == 1
    assert "belongs to a search with other settings" in result.stderr
    assert "genome.layer_granularity: 2 -> 4" in result.stderr


def test_another_seed_is_refused(inputs: Path, tmp_path: Path) -> None:
    text = kept_search(inputs, tmp_path / "run")
    result = search(inputs, tmp_path / "run", text, "--random-seed", 4)
    assert result.exit_code == 1
    assert "belongs to a search with another seed" in result.stderr
    assert "--random-seed: 3 -> 4" in result.stderr


@pytest.mark.parametrize(
    ("before", "now"), [("transformers", "transformers, 8-bit weights"), ("vllm", "transformers")]
)
def test_other_scores_are_refused(inputs: Path, tmp_path: Path, before: str, now: str) -> None:
    pytest.importorskip("bitsandbytes")
    text = kept_search(inputs, tmp_path / "run", scored_by=before)
    flags = ["--load-in-8bit"] if "8-bit" in now else ["--on-disk"]
    result = search(inputs, tmp_path / "run", text, "--random-seed", 3, *flags)
    assert result.exit_code == 1
    assert "belongs to a search with other scores" in result.stderr
    assert f"scored by: {before} -> {now}" in result.stderr


def test_a_second_driver_is_refused(inputs: Path, tmp_path: Path) -> None:
    text = kept_search(inputs, tmp_path / "run")
    with StoragePath(tmp_path / "run").lock():
        result = search(inputs, tmp_path / "run", text, "--random-seed", 3)
    assert result.exit_code == 1
    assert "another search is running on" in result.stderr


def test_somebody_elses_folder_is_refused_untouched(inputs: Path, tmp_path: Path) -> None:
    storage = tmp_path / "run"
    storage.mkdir()
    (storage / "thesis.tex").write_text("important")
    result = search(inputs, storage, tiny.search_text(inputs / "models"))
    assert result.exit_code == 1
    assert "is not empty and no storage path" in result.stderr
    assert [path.name for path in storage.iterdir()] == ["thesis.tex"]


def test_merge_writes_a_model(inputs: Path, tmp_path: Path) -> None:
    models = inputs / "models"
    config = tmp_path / "recipe.yml"
    config.write_text(
        f"merge_method: slerp\nbase_model: {models / 'left'}\n"
        f"models: [{{model: {models / 'left'}}}, {{model: {models / 'right'}}}]\nparameters: {{t: 0.0}}\n"
    )
    result = invoke(main, "merge", config, tmp_path / "out")
    assert result.exit_code == 0
    assert result.output.startswith(f"wrote {tmp_path / 'out'}: ")
    weights = "model.safetensors"
    from safetensors.torch import load_file

    merged, left = load_file(tmp_path / "out" / weights), load_file(models / "left" / weights)
    assert merged.keys() == left.keys()
    assert all(bool((merged[name] == left[name]).all()) for name in left)


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("merge_method: lineal\nmodels: [{model: a}]\n", 2, "merge_method"),
        ("merge_method: passthrough\nmodels: [{model: ./nowhere}]\n", 2, "./nowhere: no such folder"),
        ("a: [1, 2", 2, "recipe.yml: line 2, column 1"),
    ],
)
def test_merge_refuses_in_one_message(tmp_path: Path, text: str, status: int, expected: str) -> None:
    config = tmp_path / "recipe.yml"
    config.write_text(text)
    result = invoke(main, "merge", config, tmp_path / "out")
    assert result.exit_code == status
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert not (tmp_path / "out").exists()


def test_status_and_report_on_a_journal(tmp_path: Path) -> None:
    written(tmp_path / "run", view(20))
    status = invoke(main, "status", tmp_path / "run")
    assert "20 of 80 candidates done" in status.output
    report = invoke(main, "report", tmp_path / "run", "--png", tmp_path / "picture.png")
    assert (report.exit_code, (tmp_path / "picture.png").exists()) == (0, True)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("verb", [("status",), ("report",), ("export", "out")])
def test_verbs_refuse_a_folder_without_a_search(tmp_path: Path, verb: tuple[str, ...]) -> None:
    result = invoke(main, verb[0], tmp_path, *verb[1:])
    assert result.exit_code == 1
    assert "cannot read the journal" in result.stderr


def test_there_is_nothing_to_export_before_the_first_score(tmp_path: Path) -> None:
    from evolve.outcome import Failed

    failed = candidate(0, outcome=Failed(reason="no", stage="score"))
    written(tmp_path / "run", replace(view(12, with_holdout=False), candidates=(failed,)))
    result = invoke(main, "export", tmp_path / "run", tmp_path / "out")
    assert result.exit_code == 1
    assert "no candidate has a score yet" in result.stderr

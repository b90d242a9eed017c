"""best_config.yaml, the exported model, and what a full disk does to it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evolve.evaluator import Evaluation
from evolve.export import (
    BestConfig,
    ExportError,
    config_text,
    differing_items,
    is_written,
    rescore,
    write_winner,
)
from evolve.fleet import Done, Job, WorkerEvent
from evolve.journal import JournalView
from evolve.outcome import Failed, Outcome, Scored
from evolve.records import CandidateRecord
from evolve.report.summary import Summary, summarise
from evolve.storage import StoragePath
from merge_engine.spec import load_yaml
from tests.evolve import tiny
from tests.evolve.made import candidate, holdout, run_record, scored

SCORED = scored(0.75, 0.5)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.write_models(folder)
    return folder


@pytest.fixture
def winner(models: Path) -> CandidateRecord:
    recipe = {
        "merge_method": "dare_linear",
        "base_model": str(models / "base"),
        "models": [
            {"model": str(models / "left"), "parameters": {"weight": 0.7, "density": 0.5}},
            {"model": str(models / "right"), "parameters": {"weight": 0.4, "density": 0.5}},
        ],
        "dtype": "bfloat16",
    }
    return replace(candidate(6, outcome=SCORED), recipe=recipe)


def summary_of(winner: CandidateRecord) -> Summary:
    rows = (holdout("best", 6, scored(0.7, 0.5)), holdout("baseline:source:left", 0, scored(0.25, 0.5)))
    return summarise(JournalView(run=run_record(), candidates=(winner,), holdout=rows))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_best_config_follows_the_best_candidate(tmp_path: Path) -> None:
    storage = StoragePath(tmp_path)
    watched = BestConfig(storage, seed=3)
    watched.on_start(run_record(), (candidate(0, outcome=scored(0.5)), candidate(1, outcome=scored(0.25))))
    assert "candidate 1 (sample)" in storage.best_config.read_text()
    watched.on_candidate(candidate(2, outcome=scored(0.4)))
    watched.on_candidate(candidate(3, outcome=Failed(reason="no", stage="score")))
    assert "candidate 1 (sample)" in storage.best_config.read_text()
    watched.on_candidate(candidate(4, "mean", outcome=scored(0.75)))
    text = storage.best_config.read_text()
    assert text.startswith("# candidate 5 (mean) of a mergevolve search with seed 3\n")
    assert "# score on the search items: 0.750000\n" in text
    assert load_yaml(text) == candidate(4).recipe


def test_before_anything_is_scored_there_is_no_best_config(tmp_path: Path) -> None:
    watched = BestConfig(StoragePath(tmp_path), seed=3)
    watched.on_start(run_record(), ())
    watched.on_candidate(candidate(0, outcome=Failed(reason="no", stage="score")))
    assert list(tmp_path.iterdir()) == []


def test_the_model_loads_and_has_tokenizer_generation_config_and_card(
    winner: CandidateRecord, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    out = tmp_path / "final_model"
    write_winner(winner, summary_of(winner), out)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4
    assert AutoTokenizer.from_pretrained(out)("a b").input_ids == [3, 4]
    assert GenerationConfig.from_pretrained(out).eos_token_id == 1
    assert [path.name for path in tmp_path.iterdir()] == ["final_model"]
    assert is_written(winner, summary_of(winner), out)
    assert not is_written(replace(winner, id=7), summary_of(winner), out)
    assert not is_written(winner, summary_of(winner), tmp_path / "elsewhere")

    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(front)
    sources = {model["model"] for model in winner.recipe["models"]}
    assert "base_model" not in header, "folders of this machine mean nothing to a hub"
    assert all(f"- `{model}`\n" in body for model in {winner.recipe["base_model"]} | sources)
    assert header["library_name"] == "transformers"
    assert "merge" in header["tags"]
    assert "Method: `dare_linear`" in body
    assert "| search items | 1.2500 | 0.7500 | 0.5000 |" in body
    assert "| held-out items: source left | 0.750 ±" in body
    assert "--random-seed 3" in body
    assert load_yaml(body.split("```yaml\n")[1].split("```")[0]) == winner.recipe


def test_exported_again_the_random_masks_are_the_same(winner: CandidateRecord, tmp_path: Path) -> None:
    write_winner(winner, summary_of(winner), tmp_path / "one")
    write_winner(winner, summary_of(winner), tmp_path / "two")
    weights = "model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (tmp_path / "two" / weights).read_bytes()
    other_seed = summary_of(winner)
    other_seed = replace(other_seed, run=replace(other_seed.run, seed=4))
    write_winner(winner, other_seed, tmp_path / "three")
    assert (tmp_path / "one" / weights).read_bytes() != (tmp_path / "three" / weights).read_bytes()


def test_only_a_model_of_our_own_is_replaced(winner: CandidateRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists and was not written by mergevolve; name a new folder"):
        write_winner(winner, summary_of(winner), out)
    assert files(out) == {"notes.txt": b"mine"}
    (out / "notes.txt").unlink()
    write_winner(winner, summary_of(winner), out)
    (out / "left-over").write_text("of the old model")
    write_winner(winner, summary_of(winner), out)
    assert "left-over" not in files(out)


def test_a_full_disk_leaves_the_old_model_and_no_half_of_the_new_one(
    winner: CandidateRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "final_model"
    write_winner(winner, summary_of(winner), out)
    before = files(out)

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    worse = replace(winner, recipe={**winner.recipe, "merge_method": "task_arithmetic"})
    worse.recipe["models"] = [
        {"model": model["model"], "parameters": {"weight": 0.5}} for model in winner.recipe["models"]
    ]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(ExportError, match=r"no space left on the device\. Nothing half-written is left"):
            write_winner(worse, summary_of(worse), out)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["final_model"]

    write_winner(worse, summary_of(worse), out)  # with room again, it works
    assert files(out) != before


def test_a_source_that_is_gone_is_named(winner: CandidateRecord, tmp_path: Path) -> None:
    winner.recipe["models"][0]["model"] = str(tmp_path / "gone")
    with pytest.raises(ExportError, match="gone: no such folder"):
        write_winner(winner, summary_of(winner), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_differing_items_are_counted_by_task() -> None:
    one, other = scored(0.5, 0.5, items=4, seed=1), scored(0.5, 0.75, items=4, seed=1)
    assert differing_items(one.report, one.report) == {}
    assert differing_items(one.report, other.report) == {"words": 1}


class OneAnswer:
    """A fleet that gives the same outcome to every job."""

    capacity = 1

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, timeout_s: float) -> list[Done]:
        evaluation = Evaluation(outcome=self._outcome, merge_s=0.0, score_s=0.0, forward_s=0.0)
        job = self.jobs[-1]
        return [Done(job=job, evaluation=evaluation, worker="w", started_s=0.0, wall_s=0.0, attempts=1)]

    def events(self) -> list[WorkerEvent]:
        return []

    def close(self) -> None:
        return None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (SCORED, None),
        (scored(0.75, 0.25), "read back from disk, it scores differently on 10 items of words"),
        (Failed(reason="no memory", stage="score"), "scoring it from disk failed: no memory"),
    ],
)
def test_a_written_model_is_scored_as_it_stands(found: Any, said: str | None, tmp_path: Path) -> None:
    assert isinstance(SCORED, Scored)
    fleet = OneAnswer(found)
    assert rescore(tmp_path, SCORED.report, fleet) == said
    assert fleet.jobs[0].recipe == {"merge_method": "passthrough", "models": [{"model": str(tmp_path)}]}
    assert fleet.jobs[0].split == "search"


def test_the_config_of_a_candidate_without_score_says_so() -> None:
    failed = candidate(0, outcome=Failed(reason="no", stage="score"))
    assert "score on the search items: none" in config_text(failed, 0)

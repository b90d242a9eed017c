"""The same model and tasks give the same item results here and in lm-eval's own Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fitness.transformers_backend import TransformersBackend

TASKS = [
    ("tiny_say", "exact_match,whole"),
    ("tiny_say", "exact_match,first-letter"),
    ("tiny_pick", "acc,none"),
    ("tiny_pick", "acc_norm,none"),
    ("tiny_letter", "acc,none"),
    ("tiny_next", "perplexity,none"),
    ("tiny_text", "bits_per_byte,none"),
]


@pytest.fixture(scope="module")
def lm_eval_results(model_folder: Path, task_folder: Path) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(str(model_folder), dtype="float32", device="cpu", batch_size=4)
    found = lm_eval.simple_evaluate(
        model,
        tasks=sorted({name for name, _ in TASKS}),
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("batch_size", [3, 64])
def test_item_results_equal_lm_evals(
    batch_size: int,
    model_folder: Path,
    lm_eval_results: dict[str, Any],
    make_suite: Callable[..., Any],
    weights: Callable[[Path], Any],
) -> None:
    backend = TransformersBackend(model_folder, make_suite(*TASKS), dtype="float32", batch_size=batch_size)
    backend.load(weights(model_folder))
    report = backend.score("search")

    reported = {(result.task, result.metric): result for result in report.tasks}
    assert set(reported) == set(TASKS)
    for (task, metric), result in reported.items():
        name, filter_name = metric.split(",")
        samples = sorted(lm_eval_results["samples"][task], key=lambda sample: sample["doc_id"])
        theirs = [sample[name] for sample in samples if sample["filter"] == filter_name]
        assert result.value == pytest.approx(lm_eval_results["results"][task][metric], rel=1e-5)
        if metric == "bits_per_byte,none":
            assert result.items == (None,) * 8
        else:
            assert result.items == pytest.approx(theirs, rel=1e-4)


def test_answers_equal_lm_evals(
    model_folder: Path,
    lm_eval_results: dict[str, Any],
    make_suite: Callable[..., Any],
    weights: Callable[[Path], Any],
) -> None:
    suite = make_suite(("tiny_say", "exact_match,whole"), ("tiny_pick", "acc,none"))
    backend = TransformersBackend(model_folder, suite, dtype="float32", batch_size=8)
    backend.load(weights(model_folder))
    backend.score("search")

    said, picked = (
        [sample["resps"] for sample in sorted(lm_eval_results["samples"][task], key=lambda s: s["doc_id"])]
        for task in ("tiny_say", "tiny_pick")
    )
    texts = [instance.resps for instance in backend._suite.tasks.built("search")[0].instances]
    assert texts == [answers for sample in said[::2] for answers in sample]
    assert len({text for [text] in texts}) > 10, "the model must have something to say"
    pairs = [instance.resps[0] for instance in backend._suite.tasks.built("search")[1].instances]
    theirs = [answer for sample in picked for [answer] in sample]
    ours_value, theirs_value = ([float(value) for value, _ in side] for side in (pairs, theirs))
    torch.testing.assert_close(torch.tensor(ours_value), torch.tensor(theirs_value))
    assert [greedy for _, greedy in pairs] == [greedy for _, greedy in theirs]

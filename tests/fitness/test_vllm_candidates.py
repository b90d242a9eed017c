"""The same merges of the demo's models, briefly trained, scored by transformers and by vLLM engines."""

from __future__ import annotations

import importlib.util
import itertools
import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fitness.requests import Continuation, Generation
from fitness.transformers_backend import TransformersBackend
from tests.fitness.vllm_candidates import TORN, Scores, demo_suite, merged, scores

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from demo_models.build import Settings, build  # noqa: E402
from demo_models.vocabulary import EOS  # noqa: E402

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="needs vLLM, which scripts/test installs"
    ),
    pytest.mark.slow,
]

_BRIEF = Settings(items_per_task=2000, batch_size=64, steps_share=0.1, threads=1)
_LIMIT = 120  # items of each of the three tasks
_WEIGHTS = ((0.9, 0.8, 0.7), (0.3, 1.1, 0.6), (0.0, 0.2, 1.0))
# How far two backends' log-probabilities of one token may lie apart: sums in another order, and in bfloat16
# every activation rounded by up to 2**-9 of its value. Measured here: 1e-6 and 9e-3.
_NOISE = {"float32": 1e-5, "bfloat16": 5e-2}

Engine = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import torch

    folder = tmp_path_factory.mktemp("demo")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    build(folder, _BRIEF, jobs=1, say=lambda line: None)
    yield folder
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def engine(demo: Path) -> Engine:
    """Runs an engine with each setting once; several workers merge the candidates in turns each all of them,
    and each its share.
    """
    known: dict[tuple[str, int], list[Any]] = {}

    def run(dtype: str, tensor_parallel_size: int = 1) -> list[Any]:
        key = dtype, tensor_parallel_size
        if key not in known:
            recipes = [_recipe(demo, dtype, weights) for weights in _WEIGHTS]
            lost = {**recipes[0], "base_model": str(demo / "nowhere")}
            bad = [("torn", recipes[0]), ("shared", lost), ("each", lost)]
            candidates = [*bad, *zip(("shared", "each", "shared"), recipes, strict=True)]
            known[key] = _run(demo, dtype, tensor_parallel_size, candidates)
        return known[key]

    return run


def _run(demo: Path, dtype: str, tensor_parallel_size: int, candidates: list[Any]) -> list[Any]:
    out = demo / f"{dtype}-{tensor_parallel_size}.json"
    options = {
        "out": str(out),
        "demo": str(demo),
        "limit": _LIMIT,
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel_size,
        "candidates": candidates,
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.fitness.vllm_candidates", json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return list(json.loads(out.read_text()))


def _recipe(demo: Path, dtype: str, weights: tuple[float, ...]) -> dict[str, Any]:
    experts = zip(("arithmetic", "text", "choice"), weights, strict=True)
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(demo / "base"),
        "models": [{"model": str(demo / name), "parameters": {"weight": weight}} for name, weight in experts],
        "dtype": dtype,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backends_differ_only_where_answers_tie(
    dtype: str, demo: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = TransformersBackend(demo / "base", demo_suite(demo, _LIMIT), dtype=dtype, batch_size=64)
    found = []
    for weights, theirs in zip(_WEIGHTS, engine(dtype)[-len(_WEIGHTS) :], strict=True):
        recipe = _recipe(demo, dtype, weights)
        ours = scores(backend, merged(recipe))
        assert len({str(answer) for answer in ours.answers}) > _LIMIT, "the models have too little to say"
        found.append(_compared(ours, theirs, _Judge(demo, recipe)))
    noise = max(each.noise for each in found)
    outcomes, texts = sum(each.outcomes for each in found), sum(each.texts for each in found)
    gaps = [gap for each in found for gap in each.gaps]
    with capsys.disabled():
        items = len(_WEIGHTS) * _LIMIT
        print(
            f"\n{dtype}: {outcomes} of {3 * items} outcomes differ, {texts} of {2 * items} texts, "
            f"answers up to {max(gaps, default=0):.1e} apart; likelihoods up to {noise:.1e} a token"
        )
    assert noise <= _NOISE[dtype]
    assert all(gap <= 2 * _NOISE[dtype] for gap in gaps)  # each of two answers may be off by as much


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """``outcomes`` and ``texts``: how many differ. ``gaps``: between the two answers of each that differs.
    ``noise``: the largest difference of a likelihood. Both in log-probability for each token.
    """

    outcomes: int
    texts: int
    gaps: list[float]
    noise: float


def _compared(ours: Scores, theirs: dict[str, Any], judge: _Judge) -> _Compared:
    answers = list(zip(ours.requests, ours.answers, theirs["answers"], strict=True))
    scored = [each for each in answers if isinstance(each[0], Continuation)]
    text_gaps = [
        judge.gap(*each) for each in answers if isinstance(each[0], Generation) and each[1] != each[2]
    ]
    picked, others = ours.items[-1], theirs["items"][-1]  # of the task with choices
    differing = [item for item in range(_LIMIT) if picked[item] != others[item]]
    outcomes = sum(map(operator.ne, itertools.chain(*ours.items), itertools.chain(*theirs["items"])))
    return _Compared(
        outcomes=outcomes,
        texts=len(text_gaps),
        gaps=text_gaps + [_gap_of_best(scored, item) for item in differing],
        noise=max(abs(a[0] - b[0]) / len(request.target) for request, a, b in scored),
    )


def _gap_of_best(scored: list[Any], item: int) -> float:
    """Between the two likeliest choices of an item."""
    choices = len(scored) // _LIMIT
    worse, best = sorted(a[0] for _, a, _ in scored[item * choices : (item + 1) * choices])[-2:]
    return float(best - worse)


class _Judge:
    """The merged model in fp32, which says how close two texts are."""

    def __init__(self, demo: Path, recipe: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(demo / "base")
        self._end = self._tokenizer.convert_tokens_to_ids(EOS)
        self._model = AutoModelForCausalLM.from_pretrained(demo / "base", dtype=torch.float32)
        self._model.load_state_dict(dict(merged(recipe)))

    def gap(self, request: Generation, ours: str, theirs: str) -> float:
        """Where two texts part, how much less likely the worse next token is than the best of all."""
        import torch

        mine, other = ([*self._tokenizer(text)["input_ids"], self._end] for text in (ours, theirs))
        common = next(place for place, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b)
        with torch.no_grad():
            tokens = torch.tensor([[*request.prompt, *mine[:common]]])
            scores = self._model(tokens).logits[0, -1].log_softmax(-1)
        return float(scores.max() - min(scores[mine[common]], scores[other[common]]))


def test_workers_of_one_engine_merge_to_the_same_scores(engine: Engine) -> None:
    alone, together = engine("float32"), engine("float32", 2)
    for one, both in zip(alone[-len(_WEIGHTS) :], together[-len(_WEIGHTS) :], strict=True):
        assert isinstance(both, dict), both
        assert one["items"] == both["items"]
        texts = [answer for answer in one["answers"] if isinstance(answer, str)]
        assert [answer for answer in both["answers"] if isinstance(answer, str)] == texts
        assert len(texts) == 2 * _LIMIT
        values = [answer[0] for answer in one["answers"] if not isinstance(answer, str)]
        others = [answer[0] for answer in both["answers"] if not isinstance(answer, str)]
        assert others == pytest.approx(values, abs=1e-3)


def test_an_error_in_a_worker_comes_with_its_traceback(engine: Engine) -> None:
    alone = engine("float32")[2]
    torn, *together = engine("float32", 2)[:3]
    assert alone.startswith("PlanError: ")
    assert "nowhere: no such folder" in alone
    assert torn.startswith(f"StreamError: RuntimeError: {TORN} broke\nin a worker of the engine:\nTraceback")
    for each in together:
        assert each.startswith(f"StreamError: {alone}\nin a worker of the engine:\nTraceback")

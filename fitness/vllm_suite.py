"""A suite's tasks as an engine of vLLM is asked them: built and tokenised once, whatever engine answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fitness.backend import Split
from fitness.encoding import Encoder
from fitness.generation import StopWords
from fitness.model_folder import context_tokens, end_ids, load_config, load_tokenizer
from fitness.requests import Continuation, Generation, Likelihood, longest_tokens
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.suite_tasks import SuiteTasks, generations, responses, windows
from fitness.vllm_engine import VllmEngine
from fitness.vllm_settings import VllmSettings

# vLLM takes the last token of a scored text as part of the prompt, and answers with one more.
_ASIDE_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What one split asks. ``stop_ids``: tokens that end each answer, beside the model's own. Picklable."""

    generations: Sequence[Generation]
    stop_ids: Sequence[frozenset[int]]
    windows: Sequence[Continuation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The tokens of each generation, and how likely each window is. ``answer_s``: seconds that it took."""

    tokens: Sequence[list[int]]
    likelihoods: Sequence[Likelihood]
    answer_s: float


def ask(engine: VllmEngine, questions: Questions) -> Answers:
    """What the engine answers."""
    before_s = engine.answer_s
    tokens = engine.generate(questions.generations, questions.stop_ids)
    likelihoods = engine.likelihoods(questions.windows)
    return Answers(tokens=tokens, likelihoods=likelihoods, answer_s=engine.answer_s - before_s)


class VllmSuite:
    """
    Args:
        folder: with the config and the tokenizer of the models that are going to answer.
        settings: of the engines; texts longer than their context are cut, two tokens shorter than with
            transformers.

    ``end_ids``: the tokens that end an answer. ``longest_tokens``: of a prompt and its answer together.

    Raises:
        ModelError: the folder has no config or tokenizer that transformers reads.
        SuiteError: tasks cannot be built for such a model.
    """

    def __init__(
        self, folder: Path, suite: SuiteSpec, settings: VllmSettings, *, trust_remote_code: bool = False
    ) -> None:
        self.config = load_config(folder, trust_remote_code)
        self.end_ids = end_ids(folder, self.config)
        tokenizer = load_tokenizer(folder, trust_remote_code)
        self.vocab_size = len(tokenizer)
        context = context_tokens(self.config, tokenizer)
        limit = min(context, settings.max_model_len or context)
        self._tasks = SuiteTasks(suite, Encoder(tokenizer, limit - _ASIDE_TOKENS))
        asked = self._tasks.all_requests()
        self.longest_tokens = max(map(longest_tokens, asked))
        self._stopping = StopWords(tokenizer, (request.stops for request in generations(asked)))

    @property
    def digest(self) -> str:
        """Of every item and of the tokens that a model is asked, on both splits."""
        return self._tasks.digest()

    def questions(self, split: Split) -> Questions:
        """What the tasks ask on a split."""
        requests = self._tasks.requests(split)
        asked = generations(requests)
        return Questions(
            generations=asked,
            stop_ids=[self._stopping.ending(request.stops) for request in asked],
            windows=windows(requests),
        )

    def report(self, split: Split, answers: Answers) -> Report:
        """What the tasks make of the answers to `questions`. Raises `ScoringError`."""
        requests = self._tasks.requests(split)
        texts = [
            self._stopping.cut(tokens, request.stops)
            for request, tokens in zip(generations(requests), answers.tokens, strict=True)
        ]
        return self._tasks.report(split, responses(requests, texts, list(answers.likelihoods)))

"""A suite's tasks for one tokenizer: what a model is asked on each split, and what its answers are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from fitness.backend import Split
from fitness.encoding import Encoder
from fitness.errors import ModelError
from fitness.requests import Continuation, Generation, Likelihood, Request, Response, Rolling
from fitness.results import Report
from fitness.suite import SuiteSpec
from fitness.tasks import BuiltTask, build_suite


class SuiteTasks:
    """Built once per worker. Raises `SuiteError` where tasks cannot be built for this tokenizer."""

    def __init__(self, suite: SuiteSpec, encoder: Encoder) -> None:
        self._tasks = build_suite(suite, encoder)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Those that have items."""
        return tuple(self._tasks)

    def requests(self, split: Split) -> list[Request]:
        """All requests of a split, task after task, so that batches are full."""
        return [request for task in self.built(split) for request in task.requests]

    def all_requests(self) -> list[Request]:
        """Those of every split."""
        return [request for split in self._tasks for request in self.requests(split)]

    def report(self, split: Split, responses: Sequence[Response]) -> Report:
        """What lm-eval makes of the responses to `requests`, in their order. Raises `ScoringError`."""
        results = []
        for task in self.built(split):
            own, responses = responses[: len(task.requests)], responses[len(task.requests) :]
            results += task.results(own)
        return Report(tasks=tuple(results))

    def first_metric(self, split: Split) -> tuple[str, str]:
        """Task and metric to name where a whole split cannot be scored."""
        task = self.built(split)[0]
        return task.name, task.specs[0].metric

    def digest(self) -> str:
        """Of every item and of the tokens that the model is asked, on all splits."""
        digest = hashlib.blake2b(digest_size=16)
        for split, tasks in self._tasks.items():
            for task in tasks:
                asked = [
                    (instance.doc, request)
                    for instance, request in zip(task.instances, task.requests, strict=True)
                ]
                digest.update(repr((split, task.name, task.item_ids, asked)).encode())
        return digest.hexdigest()

    def built(self, split: Split) -> tuple[BuiltTask, ...]:
        """The tasks of a split; ValueError where it has none."""
        if split not in self._tasks:
            raise ValueError("this suite holds out no items: set its holdout")
        return self._tasks[split]


def generations(requests: Iterable[Request]) -> list[Generation]:
    """Those requests that are answered with text."""
    return [request for request in requests if isinstance(request, Generation)]


def windows(requests: Iterable[Request]) -> list[Continuation]:
    """What has to be scored for the other requests, in order."""
    found: list[Continuation] = []
    for request in requests:
        if isinstance(request, Rolling):
            found += request.windows
        elif isinstance(request, Continuation):
            found.append(request)
    return found


def responses(
    requests: Iterable[Request], texts: Sequence[str], likelihoods: Sequence[Likelihood]
) -> list[Response]:
    """The response to each request, from the answers to `generations` and to `windows`."""
    text, likelihood = iter(texts), iter(likelihoods)
    found: list[Response] = []
    for request in requests:
        if isinstance(request, Generation):
            found.append(next(text))
        elif isinstance(request, Continuation):
            found.append(next(likelihood))
        else:
            found.append(sum(next(likelihood).log_probability for _ in request.windows))
    if next(text, None) is not None or next(likelihood, None) is not None:
        raise ModelError("more answers than requests")
    return found

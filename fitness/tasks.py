"""lm-eval tasks, built once per worker: their items, the requests they make of a model, and their scoring.

Prompts, filters, metrics and aggregation are lm-eval's own code; only the model's side of it is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fitness.backend import Split
from fitness.encoding import Encoder
from fitness.errors import ScoringError, SuiteError, SuiteProblem
from fitness.quiet import quiet
from fitness.requests import Likelihood, Request, Response
from fitness.results import TaskResult
from fitness.splits import ItemSplit, split_items
from fitness.suite import SuiteSpec, TaskSpec
from fitness.task_index import only_search_paths

_REMEMBERED_PER_ITEM = 32  # verdicts kept, so that memory stays bounded
_FEWSHOT_SEED = 1234  # lm-eval's own default, so that its command line makes the same prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltTask:
    """One lm-eval task with the items of one split. ``requests`` and ``instances`` go together, in order."""

    name: str
    specs: tuple[TaskSpec, ...]  # what to report of it
    item_ids: tuple[int, ...]
    requests: tuple[Request, ...]
    instances: tuple[Any, ...] = field(repr=False)  # lm-eval's Instance of each request
    task: Any = field(repr=False)  # lm-eval's Task
    _judged: dict[tuple[int, tuple[str, ...]], Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def results(self, responses: Sequence[Response]) -> list[TaskResult]:
        """What lm-eval makes of the responses, one result for each of ``specs``.

        Raises:
            ScoringError: the task fails on a response, or a metric is missing or not a finite number.
        """
        for instance, response in zip(self.instances, responses, strict=True):
            instance.resps = [_as_lm_eval(response)] * (instance.repeats or 1)
            instance.filtered_resps = {}
        self._call(self.specs[0].metric, self.task.apply_filters)
        return [self._result(spec) for spec in self.specs]

    def _result(self, spec: TaskSpec) -> TaskResult:
        values = self._item_values(spec)
        scored = [value for value in values if value is not _ABSENT]
        aggregate = self.task.aggregation().get(spec.metric_name, _mean)
        value = _number(self._call(spec.metric, aggregate, scored))
        if value is None:
            raise ScoringError(self.name, spec.metric, "is not a finite number for this model")
        return TaskResult(
            task=self.name,
            metric=spec.metric,
            weight=spec.weight,
            value=value,
            items=tuple(_number(value) for value in values),
            item_ids=self.item_ids,
        )

    def _item_values(self, spec: TaskSpec) -> list[Any]:
        by_item: list[list[Any]] = [[] for _ in self.item_ids]
        for instance in self.instances:
            by_item[instance.doc_id].append(instance)
        values, known = [], set()
        for instances in by_item:
            if spec.filter_name not in instances[0].filtered_resps:
                filters = ", ".join(instances[0].filtered_resps)
                raise ScoringError(self.name, spec.metric, f"the task has no such filter; it has {filters}")
            answers = [instance.filtered_resps[spec.filter_name] for instance in instances]
            found = self._judge(spec, instances[0], answers)
            known |= set(found)
            values.append(found.get(spec.metric_name, _ABSENT))
        if all(value is _ABSENT for value in values):
            raise ScoringError(self.name, spec.metric, f"the task has no such metric; it has {sorted(known)}")
        return values

    def _judge(self, spec: TaskSpec, instance: Any, answers: list[Any]) -> Mapping[str, Any]:
        """lm-eval's verdict on one item. Candidates often give the same text: that is judged once."""
        if not all(isinstance(answer, str) for answer in answers):
            return self._asked(spec, instance, answers)
        key = (instance.doc_id, tuple(answers))
        if key not in self._judged:
            if len(self._judged) >= _REMEMBERED_PER_ITEM * len(self.item_ids):
                self._judged.clear()
            self._judged[key] = self._asked(spec, instance, answers)
        return self._judged[key]

    def _asked(self, spec: TaskSpec, instance: Any, answers: list[Any]) -> Mapping[str, Any]:
        verdict: Mapping[str, Any] = self._call(spec.metric, self.task.process_results, instance.doc, answers)
        return verdict

    def _call(self, metric: str, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # a task's own code may raise anything
            raise ScoringError(self.name, metric, f"{type(error).__name__}: {error}") from error


_ABSENT = object()  # an item for which the task reports no value of the metric


def build_suite(suite: SuiteSpec, encoder: Encoder) -> Mapping[Split, tuple[BuiltTask, ...]]:
    """Builds every task for both splits; "holdout" is missing where the suite holds nothing out.

    Raises:
        SuiteError: with every task that cannot be built for this model.
    """
    if suite.apply_chat_template and not encoder.has_chat_template:
        problem = SuiteProblem(
            task=suite.tasks[0].name,
            what="apply_chat_template is set, but the tokenizer has no chat template",
            remedy="set apply_chat_template: false, or give the tokenizer one",
        )
        raise SuiteError([problem])
    builder = _Builder(suite, encoder)
    built: dict[Split, tuple[BuiltTask, ...]] = {"search": builder.build(suite.tasks, "search")}
    if isinstance(suite.holdout, tuple):
        built["holdout"] = builder.build(suite.holdout, "holdout")
    elif suite.holdout is not None:
        built["holdout"] = builder.build(suite.tasks, "holdout")
    if builder.problems:
        raise SuiteError(builder.problems)
    return built


class _Builder:
    def __init__(self, suite: SuiteSpec, encoder: Encoder) -> None:
        from lm_eval.tasks import TaskManager

        self.problems: list[SuiteProblem] = []
        self._suite = suite
        self._encoder = encoder
        chat = suite.apply_chat_template
        self._chat = encoder.has_chat_template if chat is None else chat
        with quiet():
            self._manager = TaskManager(
                include_path=list(suite.search_paths), include_defaults=not only_search_paths(suite)
            )

    def build(self, specs: Sequence[TaskSpec], split: Split) -> tuple[BuiltTask, ...]:
        """The tasks of ``specs`` in order, each once. Fresh lm-eval objects, as they hold a split's items."""
        leaves: dict[str, Any] = {}
        wanted: dict[str, list[TaskSpec]] = {}
        item_ids: dict[str, tuple[int, ...]] = {}
        for spec in specs:
            own = self._load(spec.name)
            for name, task in own.items():
                if name not in leaves:
                    leaves[name] = task
                    item_ids[name] = self._items(name, task, split)
            total = sum(len(item_ids[name]) for name in own)
            for name in own:
                # A group's value is its tasks' mean over all items (lm-eval's weight_by_size).
                share = len(item_ids[name]) / total if total else 0.0
                part = TaskSpec(name=name, metric=spec.metric, weight=spec.weight * share)
                wanted.setdefault(name, []).append(part)
        built = (self._build_one(name, leaves[name], wanted[name], item_ids[name]) for name in leaves)
        return tuple(task for task in built if task is not None)

    def _load(self, name: str) -> dict[str, Any]:
        try:
            with quiet():
                return dict(self._manager.load([name])["tasks"])
        except Exception as error:  # a task's files and code may fail in any way
            self.problems.append(SuiteProblem(task=name, what=f"cannot be loaded: {error}"))
            return {}

    def _items(self, name: str, task: Any, split: Split) -> tuple[int, ...]:
        suite = self._suite
        try:
            parts: ItemSplit = split_items(
                len(task.eval_docs),
                task=name,
                holdout_share=suite.holdout if isinstance(suite.holdout, float) else None,
                limit=suite.limit,
                shuffle=suite.shuffle,
                seed=suite.seed,
            )
        except ValueError as error:
            self.problems.append(SuiteProblem(task=name, what=str(error)))
            return ()
        return parts.holdout if split == "holdout" and isinstance(suite.holdout, float) else parts.search

    def _build_one(
        self, name: str, task: Any, specs: Sequence[TaskSpec], item_ids: tuple[int, ...]
    ) -> BuiltTask | None:
        refusals = list(_refusals(name, task))
        if refusals or not item_ids:
            self.problems += refusals
            return None
        try:
            with quiet():
                instances = self._instances(task, item_ids)
            requests = tuple(_request(instance, self._encoder) for instance in instances)
        except Exception as error:  # as in _load
            self.problems.append(SuiteProblem(task=name, what=f"cannot be asked of this model: {error}"))
            return None
        return BuiltTask(
            name=name,
            specs=tuple(specs),
            item_ids=item_ids,
            requests=requests,
            instances=instances,
            task=task,
        )

    def _instances(self, task: Any, item_ids: tuple[int, ...]) -> tuple[Any, ...]:
        shots = task.get_config("num_fewshot")
        if shots is None:
            task.set_config("num_fewshot", self._suite.num_fewshot or 0)
        elif shots != 0 and self._suite.num_fewshot is not None:
            task.set_config("num_fewshot", self._suite.num_fewshot)
        task.set_fewshot_seed(_FEWSHOT_SEED)
        task.build_all_requests(
            samples=list(item_ids),
            apply_chat_template=self._chat,
            fewshot_as_multiturn=self._suite.fewshot_as_multiturn,
            chat_template=self._encoder.chat if self._chat else None,
        )
        _remember_documents(task)
        return tuple(sorted(task.instances, key=lambda instance: (instance.doc_id, instance.idx)))


def _refusals(name: str, task: Any) -> Iterator[SuiteProblem]:
    if getattr(task, "UNSAFE_CODE", False):
        yield SuiteProblem(task=name, what="runs the code that a model writes, which is not supported")
    if getattr(task, "MULTIMODAL", False):
        yield SuiteProblem(task=name, what="asks about images or sound; only text is supported")


def _remember_documents(task: Any) -> None:
    """Renders each document's templates once: lm-eval compiles them anew on each call."""
    documents = {id(instance.doc): instance.doc for instance in task.instances}

    def remembering(render: Callable[..., Any]) -> Callable[..., Any]:
        rendered: dict[int, Any] = {}

        def call(doc: Any, *arguments: Any) -> Any:
            if arguments or id(doc) not in documents:
                return render(doc, *arguments)
            if id(doc) not in rendered:
                rendered[id(doc)] = render(doc)
            return rendered[id(doc)]

        return call

    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        if hasattr(task, name):
            setattr(task, name, remembering(getattr(task, name)))


def _request(instance: Any, encoder: Encoder) -> Request:
    kind, arguments = instance.request_type, instance.args
    if kind == "loglikelihood":
        return encoder.continuation(*arguments)
    if kind == "loglikelihood_rolling":
        return encoder.rolling(*arguments)
    if kind == "generate_until":
        return encoder.generation(*arguments)
    raise ValueError(f"requests of type {kind!r} are not supported")


def _as_lm_eval(response: Response) -> Any:
    if isinstance(response, Likelihood):
        return response.log_probability, response.greedy
    return response


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)  # lm-eval's, for a metric without an aggregation of its own


def _number(value: Any) -> float | None:
    """``value`` as a finite float, or None if it is none (metrics of whole corpora keep tuples per item)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None

"""Before any long work: is everything in order, and what is going to happen?

`inspect` looks at the search file, the models' headers and the task files, and raises every problem at
once. It writes nothing and imports no heavy library.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evolve.errors import EvolveError
from evolve.options import SearchOptions
from fitness.suite import DEFAULT_METRIC, SuiteSpec, TaskSpec
from fitness.task_index import check_suite
from genome.benchmarks import benchmark_problems
from genome.build import build_space
from genome.errors import SearchFileError
from genome.facts import ModelFacts
from genome.parse import parse_search_file
from genome.search_file import HoldoutShare, HoldoutTasks, SearchFile, TaskEntry
from genome.space import Space
from merge_engine.checkpoint_header import CheckpointHeader, open_header
from merge_engine.errors import CheckpointError, PlanError, Problem, RecipeError
from merge_engine.layers import layer_names
from merge_engine.plan import DTYPE_NAMES, make_plan
from merge_engine.sources import resolve
from merge_engine.spec import InputModel, Recipe, load_yaml

DEFAULT_MAX_FEVALS = 100


class PreflightError(EvolveError):
    """The search cannot start; ``problems`` lists everything found."""

    def __init__(self, source: Path, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        lines = [f"{source}: {count}; nothing was started", *(f"  {problem}" for problem in problems)]
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Everything that passed; ``search_file`` has the command line's overrides in it."""

    search_file: SearchFile
    space: Space
    suite: SuiteSpec
    headers: Mapping[str, CheckpointHeader]
    max_fevals: int
    time_limit_s: float | None

    @property
    def pattern(self) -> str:
        """The model whose config and tokenizer the merged model has."""
        return self.search_file.genome.pattern

    @property
    def dtype(self) -> str:
        """Of the merged model, as recipes name it."""
        return self.search_file.genome.dtype or model_dtype(self.headers[self.pattern])


def inspect(options: SearchOptions) -> Ready:
    """Check everything that can be known before a worker starts.

    Raises:
        PreflightError: with all problems of the search file, the models, the tasks and the options.
    """
    text = _read(options.search_file)
    problems = list(_option_problems(options))
    search_file = _parse(text, problems)
    named = _Named.read(text)
    problems += _task_problems(named, options)
    headers = dict(_open_models(named, problems))
    if len(headers) == len({reference for _, reference in named.models}):
        problems += _fit_problems(headers)
    if search_file is None:
        raise PreflightError(options.search_file, problems)
    if not options.allow_benchmarks:
        problems += benchmark_problems(search_file)
    problems += _template_problems(search_file, headers)
    space = None if problems else _space(search_file, headers, problems)
    if space is None:
        raise PreflightError(options.search_file, problems)
    search_file = _overridden(search_file, options)
    budget = search_file.budget
    return Ready(
        search_file=search_file,
        space=space,
        suite=suite_spec(search_file, options),
        headers=headers,
        max_fevals=options.max_fevals or budget.candidates or DEFAULT_MAX_FEVALS,
        time_limit_s=options.timeout_s or (None if budget.hours is None else budget.hours * 3600),
    )


def suite_spec(search_file: SearchFile, options: SearchOptions) -> SuiteSpec:
    """The search file's tasks as the fitness room reads them."""
    holdout: float | tuple[TaskSpec, ...] | None = None
    if isinstance(search_file.holdout, HoldoutShare):
        holdout = search_file.holdout.share
    elif isinstance(search_file.holdout, HoldoutTasks):
        holdout = tuple(_task_spec(task) for task in search_file.holdout.tasks)
    return SuiteSpec(
        tasks=tuple(_task_spec(task) for task in search_file.tasks),
        holdout=holdout,
        limit=search_file.limit,
        num_fewshot=search_file.num_fewshot,
        shuffle=search_file.shuffle,
        apply_chat_template=search_file.apply_chat_template,
        fewshot_as_multiturn=search_file.fewshot_as_multiturn,
        search_paths=options.task_search_paths,
        seed=options.seed,
    )


def _task_spec(task: TaskEntry) -> TaskSpec:
    return TaskSpec(name=task.name, metric=task.metric, weight=task.weight)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise PreflightError(path, [Problem("the search file", f"cannot be read: {reason}")]) from error


def _parse(text: str, problems: list[Problem]) -> SearchFile | None:
    try:
        return parse_search_file(text)
    except SearchFileError as error:
        problems += error.problems
        return None


def _overridden(search_file: SearchFile, options: SearchOptions) -> SearchFile:
    optimizer = search_file.optimizer
    return replace(
        search_file,
        optimizer=replace(
            optimizer,
            sigma0=optimizer.sigma0 if options.sigma0 is None else options.sigma0,
            popsize=optimizer.popsize if options.popsize is None else options.popsize,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """The models and tasks that a search file names, with their paths of keys, even if the rest is wrong."""

    models: tuple[tuple[str, str], ...]
    tasks: tuple[tuple[str, TaskSpec], ...]

    @classmethod
    def read(cls, text: str) -> _Named:
        try:
            data = load_yaml(text)
        except RecipeError:
            data = None
        top = _mapping(data)
        genome, holdout = _mapping(top.get("genome")), _mapping(top.get("holdout"))
        tasks = [*_entries(top, "tasks", ""), *_entries(holdout, "tasks", "holdout.")]
        models = [*_entries(genome, "models", "genome."), ("genome.base_model", genome.get("base_model"))]
        return cls(
            models=tuple((where, model) for where, model in models if isinstance(model, str) and model),
            tasks=tuple((where, spec) for where, task in tasks for spec in _spec_if_sound(task)),
        )

    def place_of_task(self, name: str) -> str:
        return next((where for where, task in self.tasks if task.name == name), "tasks")


def _mapping(data: object) -> Mapping[str, object]:
    return data if isinstance(data, dict) else {}


def _entries(data: Mapping[str, object], key: str, prefix: str) -> list[tuple[str, object]]:
    entries = data.get(key)
    return [
        (f"{prefix}{key}[{i}]", entry) for i, entry in enumerate(entries if isinstance(entries, list) else [])
    ]


def _spec_if_sound(task: object) -> Iterator[TaskSpec]:
    """The task, unless the parser refuses its entry anyhow."""
    entry = {"name": task} if isinstance(task, str) else task
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return
    with contextlib.suppress(ValueError, AttributeError):
        yield TaskSpec(name=entry["name"], metric=entry.get("metric", DEFAULT_METRIC))


def _option_problems(options: SearchOptions) -> Iterator[Problem]:
    if options.wandb and importlib.util.find_spec("wandb") is None:
        yield Problem("--wandb", "the package wandb is not installed", "pip install 'mergevolve[wandb]'")


def _task_problems(named: _Named, options: SearchOptions) -> Iterator[Problem]:
    if not named.tasks:
        return
    tasks = tuple(task for _, task in named.tasks)
    for problem in check_suite(SuiteSpec(tasks=tasks, search_paths=options.task_search_paths)):
        folder = problem.task in options.task_search_paths
        where = "--task-search-path" if folder else named.place_of_task(problem.task)
        yield Problem(where, f"{problem.task!r}: {problem.what}", problem.remedy)


def _open_models(named: _Named, problems: list[Problem]) -> Iterator[tuple[str, CheckpointHeader]]:
    """The headers of all models that can be opened.

    Hub models are fetched, and adapters merged into their models, only if nothing is wrong yet.
    """
    for where, reference in named.models:
        if problems and not Path(reference).exists() and ("+" in reference or _may_be_on_hub(reference)):
            continue
        try:
            yield reference, open_header(resolve(reference))
        except CheckpointError as error:
            problems.append(Problem(where, str(error), "name a Hugging Face model folder or a hub id"))


def _may_be_on_hub(reference: str) -> bool:
    """Whether it is more likely a hub id than the path of a folder that is not there."""
    parent, _, _ = reference.rpartition("/")
    return (
        not reference.startswith(("/", ".", "~"))
        and "/" not in parent
        and (parent == "" or not Path(parent).is_dir())
    )


def _fit_problems(headers: Mapping[str, CheckpointHeader]) -> Iterator[Problem]:
    """Whether all models can be merged tensor by tensor: layer counts, names, shapes, vocabularies."""
    everything = Recipe(
        merge_method="linear",
        models=tuple(InputModel(model=reference, parameters={"weight": 1.0}) for reference in headers),
    )
    try:
        make_plan(everything, lambda reference: headers[reference])
    except PlanError as error:
        for problem in error.problems:
            yield Problem("genome.models", f"{problem.where}: {problem.what}", problem.remedy)


def _template_problems(search_file: SearchFile, headers: Mapping[str, CheckpointHeader]) -> Iterator[Problem]:
    genome = search_file.genome
    header = headers.get(genome.pattern)
    if search_file.apply_chat_template and header is not None and not has_chat_template(header.folder):
        yield Problem(
            "apply_chat_template",
            f"the tokenizer of {header.folder} has no chat template",
            "set it to false, or leave it out: then templates are applied where there is one",
        )


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder has a chat template, in a file of its own or in its config."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _space(
    search_file: SearchFile, headers: Mapping[str, CheckpointHeader], problems: list[Problem]
) -> Space | None:
    facts = {reference: model_facts(header) for reference, header in headers.items()}
    try:
        return build_space(search_file, facts)
    except SearchFileError as error:
        problems += error.problems
        return None


def model_facts(header: CheckpointHeader) -> ModelFacts:
    """What the genome has to know about a model. Raises `CheckpointError` where it has no layers."""
    layers = layer_names(header).layers
    return ModelFacts(
        num_layers=len(layers),
        dtype=model_dtype(header),
        model_type=str(header.config.get("model_type", "")),
        layer_tensors=layers[0],
    )


def model_dtype(header: CheckpointHeader) -> str:
    """The dtype of most of a model's elements, as recipes name it."""
    elements: dict[str, int] = {}
    for info in header.tensors.values():
        name = DTYPE_NAMES.get(info.dtype)
        if name is not None:
            elements[name] = elements.get(name, 0) + info.elements
    return max(elements, key=lambda name: elements[name], default="bfloat16")

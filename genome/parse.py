"""Reading a search file: YAML text -> `SearchFile`, or every problem at once."""

from __future__ import annotations

from genome.errors import SearchFileError
from genome.genome_reader import read_genome
from genome.search_file import (
    ALGORITHMS,
    DEFAULT_METRIC,
    DEFAULT_SIGMA0,
    SCHEDULERS,
    SMALLEST_POPSIZE,
    Budget,
    Genome,
    Holdout,
    HoldoutShare,
    HoldoutTasks,
    OptimizerSpec,
    SearchFile,
    TaskEntry,
)
from genome.slice_layout import read_layout
from genome.template import read_template
from genome.vllm_spec import read_vllm
from merge_engine.errors import Problem, RecipeError
from merge_engine.spec import load_yaml
from merge_engine.spec.reading import Fields, Refused, flag, integer, one_of, real, shown
from merge_engine.spec.reading import text as nonempty

_SHARE = real(low=0, high=1, low_open=True, high_open=True)
_POSITIVE = real(low=0, low_open=True)


def parse_search_file(text: str) -> SearchFile:
    """The search file in YAML ``text``, defaults filled in.

    Raises `SearchFileError` with every problem: wrong YAML, unknown keys, wrong types, values out of range,
    models and methods that do not fit together. Whether the tasks and models exist is not looked at.
    """
    try:
        data = load_yaml(text)
    except RecipeError as error:
        raise SearchFileError(error.problems) from None
    problems: list[Problem] = []
    search_file = _read(Fields(data, "", problems), problems)
    if problems:
        raise SearchFileError(problems)
    return search_file


def _read(top: Fields, problems: list[Problem]) -> SearchFile:
    genome = _read_form(top, problems)
    tasks = _read_tasks(top, problems)
    if top.raw("tasks") in (None, []):
        top.refuse("tasks", "no task is given", "name at least one lm-eval task to score candidates by")
    search_file = SearchFile(
        genome=genome,
        tasks=tasks,
        holdout=_read_holdout(top, tasks, problems),
        optimizer=_read_optimizer(top.fields("optimizer")),
        scheduler=top.get("scheduler", one_of(*SCHEDULERS), SCHEDULERS[0]),
        budget=_read_budget(top.fields("budget")),
        limit=top.get("limit", _limit, None),
        num_fewshot=top.get("num_fewshot", integer(low=0), None),
        shuffle=top.get("shuffle", flag, False),
        random_init=top.get("random_init", flag, False),
        apply_chat_template=top.get("apply_chat_template", flag, None),
        fewshot_as_multiturn=top.get("fewshot_as_multiturn", flag, True),
        initial=_read_initial(top, problems),
        vllm=read_vllm(top.fields("vllm")),
    )
    top.finish()
    return search_file


def _read_form(top: Fields, problems: list[Problem]) -> Genome:
    """What may vary: ``genome``, or in its place ``template`` or ``layout``."""
    forms = [key for key in ("genome", "template", "layout") if top.has(key)]
    if len(forms) > 1:
        top.refuse(forms[1], f"given beside {forms[0]}", "each of them says what may vary: keep one")
    if "template" in forms:
        return read_template(top, problems)
    return read_layout(top.fields("layout"), problems) if "layout" in forms else read_genome(top, problems)


def _read_initial(top: Fields, problems: list[Problem]) -> tuple[str, ...]:
    """The paths under ``initial``: recipes that the search begins with."""
    paths = []
    for where, data in top.entries("initial"):
        try:
            paths.append(nonempty(data))
        except Refused as refused:
            problems.append(Problem(where, refused.what, refused.remedy))
    return tuple(paths)


def _read_tasks(fields: Fields, problems: list[Problem]) -> tuple[TaskEntry, ...]:
    """The entries under ``tasks``, without duplicates and not all of weight 0."""
    tasks: list[TaskEntry] = []
    for where, data in fields.entries("tasks"):
        task = _read_task(data, where, problems)
        if any(task.name and (task.name, task.metric) == (other.name, other.metric) for other in tasks):
            what = f"the task {task.name!r} with metric {task.metric!r} is already in the list"
            problems.append(Problem(where, what, "list each pair of task and metric once"))
        tasks.append(task)
    if tasks and all(task.weight == 0 for task in tasks):
        fields.refuse("tasks", "every task has weight 0", "give at least one a weight that counts")
    return tuple(tasks)


def _read_task(data: object, where: str, problems: list[Problem]) -> TaskEntry:
    fields = Fields({"name": data} if isinstance(data, str) else data, where, problems)
    task = TaskEntry(
        name=fields.need("name", nonempty, ""),
        weight=fields.get("weight", real(), 1.0),
        metric=fields.get("metric", _metric, DEFAULT_METRIC),
    )
    fields.finish()
    return task


def _metric(value: object) -> str:
    """lm-eval's "metric,filter"."""
    name, _, filter_name = nonempty(value).partition(",")
    if name and filter_name:
        return f"{name},{filter_name}"
    raise Refused(
        f"expected 'metric,filter', found {shown(value)}", f"for the unfiltered metric: '{name},none'"
    )


def _limit(value: object) -> float:
    """A whole number of items, or a share of them below 1."""
    number = _POSITIVE(value)
    if number >= 1 and number != int(number):
        raise Refused(f"expected a whole number of items or a share below 1, found {shown(value)}")
    return number


def _read_holdout(top: Fields, tasks: tuple[TaskEntry, ...], problems: list[Problem]) -> Holdout | None:
    """``holdout: 0.5``, ``holdout: {share: 0.5}`` or ``holdout: {tasks: [...]}``."""
    data = top.raw("holdout")
    if data is None:
        return None
    if not isinstance(data, dict):
        return HoldoutShare(share=top.get("holdout", _SHARE, 0.0))
    fields = Fields(data, top.path("holdout"), problems)
    share = fields.get("share", _SHARE, 0.0)
    held_out = _read_tasks(fields, problems)
    fields.finish()
    if fields.has("share") == fields.has("tasks"):
        found = "both" if fields.has("share") else "neither"
        fields.refuse("", f"expected either share or tasks, found {found}")
    names = {task.name for task in tasks}
    for i, task in enumerate(held_out):
        if task.name in names:
            what = f"the task {task.name!r} is searched on: it cannot be held out too"
            fields.refuse(f"tasks[{i}]", what, "hold out another task, or a share of its items")
    return HoldoutTasks(tasks=held_out) if fields.has("tasks") else HoldoutShare(share=share)


def _read_optimizer(fields: Fields) -> OptimizerSpec:
    optimizer = OptimizerSpec(
        name=fields.get("name", one_of(*ALGORITHMS), ALGORITHMS[0]),
        popsize=fields.get("popsize", integer(low=SMALLEST_POPSIZE), None),
        sigma0=fields.get("sigma0", real(low=0, high=1, low_open=True), DEFAULT_SIGMA0),
        restarts=fields.get("restarts", integer(low=0), 0),
    )
    fields.finish()
    return optimizer


def _read_budget(fields: Fields) -> Budget:
    budget = Budget(
        candidates=fields.get("candidates", integer(low=1), None), hours=fields.get("hours", _POSITIVE, None)
    )
    fields.finish()
    return budget

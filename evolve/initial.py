"""Recipes of the user, or winners of earlier searches, that a search begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evolve.ledger import recipe_digest
from genome.box import Vector
from genome.space import Space
from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import MergeError, PlanError, Problem, RecipeError
from merge_engine.plan import make_plan
from merge_engine.sources import open_source
from merge_engine.spec.recipe import Recipe, parse_recipe, recipe_data
from merge_engine.spec.yaml_io import load_yaml

_REMEDY = "name a file with one merge config, such as the best_config.yaml of an earlier search"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialRecipe:
    """``file``: as the search file names it. ``vector``: its point in the space, or None if it has none."""

    file: str
    recipe: Recipe
    vector: Vector | None

    @property
    def digest(self) -> str:
        """Of the recipe's content."""
        return recipe_digest(recipe_data(self.recipe)).hex()


def read_initial(
    files: Sequence[str],
    headers: Mapping[str, CheckpointHeader],
    problems: list[Problem],
    *,
    allow_crimes: bool = False,
) -> tuple[tuple[str, Recipe], ...]:
    """The recipes in ``files``; what is wrong with them, with file and key, goes to ``problems``.

    Their models need not be those of the search, whose ``headers`` are at hand, but they have to be there and
    to fit together.
    """
    found: list[tuple[str, Recipe]] = []
    for number, file in enumerate(files):
        where = f"initial[{number}]"
        if file in files[:number]:
            problems.append(Problem(where, f"{file} is already in the list", "name each file once"))
            continue
        try:
            recipe = parse_recipe(load_yaml(Path(file).read_text(encoding="utf-8")))
            make_plan(
                recipe,
                lambda reference: headers.get(reference) or open_source(reference),
                allow_crimes=allow_crimes,
            )
            found.append((file, recipe))
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            problems.append(Problem(where, f"{file} cannot be read: {reason}", _REMEDY))
        except (RecipeError, PlanError) as error:
            problems += [
                Problem(where, f"{file}: {problem.where}: {problem.what}", problem.remedy or _REMEDY)
                for problem in error.problems
            ]
        except MergeError as error:
            problems.append(Problem(where, f"{file}: {error}", "mend that, or leave the file out"))
    return tuple(found)


def place_initial(recipes: Sequence[tuple[str, Recipe]], space: Space) -> tuple[InitialRecipe, ...]:
    """Each recipe with its point in ``space``, where it has one."""
    return tuple(
        InitialRecipe(file=file, recipe=recipe, vector=space.encode(recipe)) for file, recipe in recipes
    )


def notes(initial: Sequence[InitialRecipe]) -> list[str]:
    """One line for each recipe that is no point of the space."""
    return [
        f"note: {each.file} is not a point of this space: it is scored and reported, but the search cannot "
        "start from it"
        for each in initial
        if each.vector is None
    ]

"""What a merge is, without torch: the method table, the recipe schema, parameter values, and YAML."""

from merge_engine.errors import Problem, RecipeError
from merge_engine.spec.methods import METHODS, Method, Parameter
from merge_engine.spec.recipe import (
    DTYPES,
    InputModel,
    OutputModule,
    OutputSlice,
    Recipe,
    SliceSource,
    parse_recipe,
    recipe_data,
)
from merge_engine.spec.values import Filtered, Gradient, Scalar, Value, evaluate, first_match, layer_place
from merge_engine.spec.yaml_io import dump_yaml, load_yaml

__all__ = [
    "DTYPES",
    "METHODS",
    "Filtered",
    "Gradient",
    "InputModel",
    "Method",
    "OutputModule",
    "OutputSlice",
    "Parameter",
    "Problem",
    "Recipe",
    "RecipeError",
    "Scalar",
    "SliceSource",
    "Value",
    "dump_yaml",
    "evaluate",
    "first_match",
    "layer_place",
    "load_yaml",
    "parse_recipe",
    "recipe_data",
]

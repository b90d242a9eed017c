"""Search file + facts about its models -> search space."""

from __future__ import annotations

from collections.abc import Mapping

from genome.facts import ModelFacts
from genome.grid_space import GridSpace
from genome.search_file import SearchFile
from genome.space import Space


def build_space(search_file: SearchFile, facts: Mapping[str, ModelFacts]) -> Space:
    """The space of ``search_file`` over models with these ``facts``, by the references it names them by.

    Raises `SearchFileError` where the search file does not fit the models.
    """
    pattern = facts[search_file.genome.pattern]
    return GridSpace.build(search_file, pattern.num_layers, pattern.dtype)

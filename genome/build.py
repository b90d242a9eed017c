"""Search file + facts about its models -> search space."""

from __future__ import annotations

from collections.abc import Mapping

from genome.errors import SearchFileError
from genome.expand import expanded
from genome.facts import ModelFacts
from genome.pair_space import PairSpace
from genome.search_file import GenomeSpec, SearchFile
from genome.searched import chooses_pairs
from genome.slice_layout import LayoutSpec
from genome.slice_layout_space import LayoutSpace
from genome.space import Space
from genome.template import Template, make_template
from genome.template_baselines import Compared
from genome.template_space import TemplateSpace
from merge_engine.errors import Problem
from merge_engine.spec import METHODS


def build_space(search_file: SearchFile, facts: Mapping[str, ModelFacts]) -> Space:
    """The space of ``search_file`` over models with these ``facts``, by the references it names them by.

    Raises `SearchFileError` where the search file does not fit the models.
    """
    match search_file.genome:
        case Template() as template:
            return TemplateSpace(template, facts)
        case LayoutSpec() as layout:
            return LayoutSpace(layout, facts)
        case genome:
            return _genome_space(genome, facts)


def keeps_layers(search_file: SearchFile, space: Space) -> bool:
    """Whether every candidate of ``space`` has the layers of the pattern, one for one."""
    return isinstance(search_file.genome, GenomeSpec) or space.decode(space.start).slices is None


def _genome_space(genome: GenomeSpec, facts: Mapping[str, ModelFacts]) -> Space:
    if chooses_pairs(METHODS[genome.merge_method], genome.models):
        pattern = facts[genome.pattern]
        return PairSpace(genome, pattern.num_layers, pattern.dtype)
    problems: list[Problem] = []
    template = make_template(
        expanded(genome) | {"dtype": genome.dtype or facts[genome.pattern].dtype}, problems
    )
    if problems:
        raise SearchFileError(problems)
    compared = Compared(
        models=genome.models,
        base_model=genome.base_model,
        tokenizer_source=genome.tokenizer_source,
        uniform=True,
    )
    return TemplateSpace(template, facts, compared)

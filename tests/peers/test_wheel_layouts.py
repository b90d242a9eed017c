"""Paths through layers, as the layout search writes them: the wheel builds the same tensors, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from evolve.search_models import model_facts
from genome import RefusedRecipe
from genome.slice_layout import LayoutSpec
from genome.slice_layout_space import LayoutSpace
from merge_engine.checkpoint_header import open_header
from merge_engine.spec import recipe_data
from tests.merge_engine import toy
from tests.peers.test_wheel import our_merge, wheel_merge

if importlib.util.find_spec("mergekit") is None:
    pytest.skip("mergekit is not installed", allow_module_level=True)


@pytest.mark.parametrize("scales", ["none", "layer", "hop"])
@pytest.mark.parametrize("keep_ends", [True, False])
def test_paths_are_built_alike(scales: str, keep_ends: bool, tmp_path: Path) -> None:
    toy.family(tmp_path)
    models = tuple(str(tmp_path / name) for name in ("a", "b"))
    space = LayoutSpace(
        LayoutSpec(models=models, repeats=2, keep_ends=keep_ends, scales=scales, scale_bounds=(-1.5, 1.5)),
        {model: model_facts(open_header(Path(model))) for model in models},
    )
    generator = np.random.default_rng(0)
    built = 0
    while built < 2:
        vector = generator.uniform(space.lower, space.upper)
        try:
            data = recipe_data(space.decode(vector))
        except RefusedRecipe:
            continue
        theirs, ours = wheel_merge(data, tmp_path / f"out{built}"), our_merge(data)
        assert sorted(ours) == sorted(theirs)
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
        built += 1

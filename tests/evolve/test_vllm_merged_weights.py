"""A merge in parts, as the workers of an engine make it, is the merge."""

from __future__ import annotations

import pytest
import torch

from evolve.merged_weights import MergeSettings, SharedWeights
from fitness.vllm_sharing import Divisible, divided
from merge_engine.spec import METHODS
from tests.merge_engine import toy

WORKERS = 3
_OF_A_MODEL = {"weight": 0.4, "density": 0.6, "scale": 0.9}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders: a base and two sources, with tensors that are merged alone and some that go in groups."""
    folder = tmp_path_factory.mktemp("models")
    config = toy.config(layers=2, hidden=128, vocabulary=600)
    base = toy.random_tensors(config, 0)
    sources = [toy.random_tensors(config, seed, near=base, scale=0.1) for seed in (1, 2)]
    return [str(toy.save(folder / str(i), config, each)) for i, each in enumerate((base, *sources))]


def weights(method: str, models: list[str]) -> SharedWeights:
    row = METHODS[method]
    base, *sources = models
    values = {name: value for name, value in _OF_A_MODEL.items() if row.parameter(name)}
    recipe = {
        "merge_method": method,
        "models": [{"model": model, "parameters": values} for model in sources[: row.max_models]],
        "dtype": "bfloat16",
        **({"base_model": base} if row.needs_base else {}),
        **({"parameters": {"t": 0.3}} if row.parameter("t") else {}),
    }
    return SharedWeights(settings=MergeSettings(seed=3, device="cpu", allow_crimes=False), recipe=recipe)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_shares_of_a_merge_are_bit_for_bit_those_of_the_whole(method: str, models: list[str]) -> None:
    merge = weights(method, models)
    assert isinstance(merge, Divisible)
    whole = dict(merge)
    outlines = merge.outlines()
    assert [(each.name, each.shape, each.dtype) for each in outlines] == [
        (name, tuple(tensor.shape), tensor.dtype) for name, tensor in whole.items()
    ]
    tasks = [task for each in divided(outlines, WORKERS) for task in each]
    made = {}
    for worker in range(WORKERS):
        mine = [task.outline.name for task in tasks if task.owner == worker]
        assert mine
        share = list(merge.made(mine))
        assert [name for name, _ in share] == mine
        made |= dict(share)
    assert made.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(made[name].view(torch.int16), tensor.view(torch.int16)), name

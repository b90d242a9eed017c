"""Search files of the first version give the spaces, recipes and baselines that they gave then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merge_engine.spec import parse_recipe
from tests.genome.made import space

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "spaces.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_spaces_stay_as_they_were(name: str) -> None:
    golden = GOLDEN[name]
    built = space(**golden["changes"])
    assert list(built.names) == golden["names"]
    assert [built.lower.tolist(), built.upper.tolist()] == [golden["lower"], golden["upper"]]
    assert built.start.tolist() == golden["start"]
    assert built.decode(np.array(golden["vector"])) == parse_recipe(golden["recipe"])
    for baseline, expected in zip(built.baselines(), golden["baselines"], strict=True):
        vector = None if baseline.vector is None else baseline.vector.tolist()
        assert (baseline.name, vector) == (expected["name"], expected["vector"])
        assert baseline.recipe == parse_recipe(expected["recipe"])

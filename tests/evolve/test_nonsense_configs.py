"""A model's config.json with nonsense in it: one clear error where the number counts, nothing where it does
not, and never a traceback.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from evolve import outlook
from evolve.cli import main
from evolve.errors import PreflightError
from evolve.forecast import forecast
from evolve.machine import Machine
from evolve.options import SearchOptions
from evolve.preflight import inspect
from tests.evolve import tiny

LAYERS = [
    ("num_hidden_layers", "many", 'num_hidden_layers is "many": allowed is a whole number of layers'),
    ("num_hidden_layers", "4", 'num_hidden_layers is "4": allowed is a whole number of layers'),
    ("num_hidden_layers", -3, "num_hidden_layers is -3: allowed"),
    ("num_hidden_layers", True, "num_hidden_layers is true: allowed"),
    ("num_hidden_layers", 1e9, "num_hidden_layers is 1000000000.0: allowed"),
    ("num_hidden_layers", math.inf, "num_hidden_layers is Infinity: allowed"),
    ("num_hidden_layers", {}, "num_hidden_layers is {}: allowed"),
    ("num_hidden_layers", [4], "num_hidden_layers is [4]: allowed"),
    ("num_hidden_layers", [4] * 999, "num_hidden_layers is [4, 4, 4, "),
    ("num_hidden_layers", 10**9, "no tensors numbered as 1000000000 layers"),
    (
        "num_hidden_layers",
        10**400,
        "no tensors numbered as 1000000000000000000000000000000000000000... layers",
    ),
    ("text_config", "many", 'text_config is "many": allowed is an object'),
    ("text_config", {"num_hidden_layers": "many"}, 'num_hidden_layers is "many": allowed'),
]
SIZES = [
    ("vocab_size", None, "vocab_size is null (allowed is a whole number up to 32"),
    ("vocab_size", [4], "vocab_size is [4] (allowed"),
    ("vocab_size", 10**9, "vocab_size is 1000000000 (allowed"),
    ("hidden_size", {}, "hidden_size is {} (allowed"),
    ("hidden_size", -3, "hidden_size is -3 (allowed"),
    ("hidden_size", math.nan, "hidden_size is NaN (allowed"),
    ("num_attention_heads", 0, "num_attention_heads is 0 (allowed"),
    ("num_attention_heads", [2, "two"], 'num_attention_heads is [2, "two"] (allowed'),
    ("num_key_value_heads", 10**400, "num_key_value_heads is 1000000000"),
    ("head_dim", math.inf, "head_dim is Infinity (allowed"),
]
NOT_NEEDED = [
    ("rope_theta", {}),
    ("rope_theta", math.inf),
    ("rope_parameters", "x"),
    ("rope_scaling", [3]),
    ("max_position_embeddings", "many"),
    ("intermediate_size", -(10**30)),
    ("num_attention_heads", [2, 2, 2, 2]),
    ("head_dim", None),
]


def short(value: object) -> str:
    return str(value)[:24]


Spoil = Callable[[str, Any], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, tasks, a merge config and a search file; merged models have the config of ``base``."""
    folder = tmp_path_factory.mktemp("nonsense")
    tiny.write_models(folder / "models")
    tiny.write_tasks(folder / "tasks")
    (folder / "search.yml").write_text(tiny.search_text(folder / "models"))
    models = [
        {"model": str(folder / "models" / name), "parameters": {"weight": 1}} for name in ("base", "left")
    ]
    (folder / "merge.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return folder


@pytest.fixture
def spoil(folder: Path) -> Any:
    """Writes a value into the config of ``models/base``, until the test is over."""
    path = folder / "models" / "base" / "config.json"
    sound = path.read_text()

    def write(key: str, value: object) -> None:
        path.write_text(json.dumps({**json.loads(sound), key: value}))

    yield write
    path.write_text(sound)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def check(folder: Path) -> None:
    """Everything that a search does before it starts workers."""
    options = SearchOptions(
        search_file=folder / "search.yml",
        storage_path=folder / "run",
        task_search_paths=(str(folder / "tasks"),),
        vllm=True,
    )
    with pytest.MonkeyPatch.context() as patch:  # whether vLLM is installed or not
        patch.setattr("importlib.util.find_spec", lambda name: object())
        ready = inspect(options)
    expected = forecast(ready, options, Machine(cores=2, free_bytes=10**10))
    outlook.before_start(ready, options.storage_path, None, expected)


@pytest.mark.parametrize(("key", "value", "message"), LAYERS, ids=short)
def test_what_is_no_number_of_layers_is_refused(
    folder: Path, tmp_path: Path, spoil: Spoil, key: str, value: object, message: str
) -> None:
    spoil(key, value)
    for refused in (
        run("merge", folder / "merge.yml", tmp_path / "out"),
        run("explain", folder / "search.yml"),
    ):
        assert refused.exit_code == 2, refused.output
        assert message in refused.output
        assert str(folder / "models" / "base") in refused.output
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PreflightError) as caught:
        check(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(("key", "value", "message"), SIZES, ids=short)
def test_sizes_that_cannot_be_are_refused_before_a_search_and_leave_merging_alone(
    folder: Path, tmp_path: Path, spoil: Spoil, key: str, value: object, message: str
) -> None:
    spoil(key, value)
    with pytest.raises(PreflightError) as caught:
        check(folder)
    assert len(caught.value.problems) == 1
    assert f"{folder / 'models' / 'base' / 'config.json'}: {message}" in str(caught.value)
    assert run("explain", folder / "search.yml").exit_code == 0
    merged = run("merge", folder / "merge.yml", tmp_path / "out")
    assert merged.exit_code == 0, merged.output


@pytest.mark.parametrize(("key", "value"), NOT_NEEDED)
def test_what_nobody_asks_for_is_passed_on(
    folder: Path, tmp_path: Path, spoil: Spoil, key: str, value: object
) -> None:
    spoil(key, value)
    check(folder)
    assert run("explain", folder / "search.yml").exit_code == 0
    merged = run("merge", folder / "merge.yml", tmp_path / "out")
    assert merged.exit_code == 0, merged.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())[key] == value


@pytest.mark.parametrize("value", [None, True, "many", [4], {}, -3, 10**9])
def test_a_vocabulary_of_no_known_size_cannot_be_joined_with_another(
    folder: Path, tmp_path: Path, spoil: Spoil, value: object
) -> None:
    spoil("vocab_size", value)
    config = tmp_path / "merge.yml"
    config.write_text((folder / "merge.yml").read_text() + "tokenizer_source: union\n")
    refused = run("merge", config, tmp_path / "out")
    assert refused.exit_code == 2, refused.output
    assert "base/config.json: " in refused.output
    assert (
        "so its embeddings are not known" in refused.output or "no embeddings have so many" in refused.output
    )

"""The stream: the same bits in memory and on its own, compiled and eager, early and late, on every worker."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_engine import groups, magnitudes, runner
from merge_engine.engine import Engine
from merge_engine.errors import CheckpointError, PlanError
from merge_engine.methods import family
from merge_engine.spec.methods import METHODS
from merge_engine.spec.recipe import Recipe, parse_recipe
from tests.merge_engine import toy


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return toy.family(tmp_path_factory.mktemp("models"))


def recipe(method: str, models: list[str], *, dtype: str = "bfloat16", **parameters: Any) -> Recipe:
    """A merge of every model with a different weight, for any method of the table."""
    base, *sources = models
    sources = sources[: METHODS[method].max_models]
    own = {"weight": (0.3, 0.5, 0.45), "density": (0.3, 0.5, 0.7), "scale": (0.7,)}
    known = {name: values for name, values in own.items() if METHODS[method].parameter(name)}
    entries = [
        {"model": source, "parameters": {name: values[i % len(values)] for name, values in known.items()}}
        for i, source in enumerate(sources)
    ]
    if METHODS[method].parameter("t"):
        parameters = {"t": [0.2, 0.8], **parameters}
    data = {"merge_method": method, "models": entries, "dtype": dtype, "parameters": parameters}
    return parse_recipe({**data, "base_model": base} if METHODS[method].needs_base else data)


def merged(engine: Engine, job: Recipe) -> dict[str, Tensor]:
    return dict(engine.stream(job))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a
    )


def test_the_stream_goes_through_the_model_in_order(models: list[str]) -> None:
    names = list(merged(Engine(), recipe("linear", models)))
    assert names[0] == "model.embed_tokens.weight"
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)
    assert names[-2:] == ["lm_head.weight", "model.norm.weight"]
    assert sorted(names) == sorted(toy.shapes(toy.config()))


@pytest.mark.parametrize("method", METHODS)
def test_resident_tensors_get_the_bits_of_the_stream(models: list[str], method: str) -> None:
    job = recipe(method, models)
    alone = merged(Engine(), job)
    resident = {name: torch.full_like(tensor, 7.0) for name, tensor in alone.items()}
    pointers = {name: tensor.data_ptr() for name, tensor in resident.items()}
    yielded = dict(Engine().stream(job, resident))
    assert all(yielded[name] is resident[name] for name in resident)
    assert {name: tensor.data_ptr() for name, tensor in resident.items()} == pointers
    assert same(resident, alone)


def test_resident_parameters_transposed_and_wider_ones(models: list[str]) -> None:
    job = recipe("ties", models)
    alone = merged(Engine(), job)
    parameter = torch.nn.Parameter(torch.zeros_like(alone["lm_head.weight"]))
    transposed = torch.zeros(alone["model.embed_tokens.weight"].T.shape, dtype=torch.bfloat16).T
    wide = torch.zeros(alone["model.norm.weight"].shape, dtype=torch.float32)
    into = {"lm_head.weight": parameter, "model.embed_tokens.weight": transposed, "model.norm.weight": wide}
    for _ in Engine().stream(job, into):
        pass
    assert torch.equal(parameter.detach(), alone["lm_head.weight"])
    assert parameter.requires_grad
    assert torch.equal(transposed, alone["model.embed_tokens.weight"])
    assert torch.equal(wide, alone["model.norm.weight"].float())  # bfloat16 values, as on disk


def test_a_resident_tensor_of_another_shape_is_refused_before_anything_is_written(models: list[str]) -> None:
    into = {"model.embed_tokens.weight": torch.zeros(64, 32), "model.norm.weight": torch.zeros(5)}
    with pytest.raises(
        PlanError, match=r"model\.norm\.weight: merges to \[32\], the resident tensor is \[5\]"
    ):
        list(Engine().stream(recipe("linear", models), into))
    assert not into["model.embed_tokens.weight"].any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_used_engine_gives_what_a_fresh_one_gives(models: list[str], method: str, dtype: str) -> None:
    used = Engine(seed=3)
    merged(used, recipe("ties", models))
    merged(used, recipe(method, models, normalize=False, dtype="float32"))
    assert same(
        merged(used, recipe(method, models, dtype=dtype)),
        merged(Engine(seed=3), recipe(method, models, dtype=dtype)),
    )


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_the_seed_decides_what_is_dropped(models: list[str], method: str) -> None:
    job = recipe(method, models)
    assert same(merged(Engine(seed=1), job), merged(Engine(seed=1), job))
    assert not same(merged(Engine(seed=1), job), merged(Engine(seed=2), job))


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_what_is_dropped_depends_on_the_models_not_on_their_paths(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = merged(Engine(), recipe(method, models))
    monkeypatch.chdir(Path(models[0]).parent)
    assert same(merged(Engine(), recipe(method, [f"./{Path(model).name}" for model in models])), whole)
    moved = [str(shutil.copytree(model, tmp_path / f"moved-{Path(model).name}")) for model in models]
    assert same(merged(Engine(), recipe(method, moved)), whole)


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_pieces_and_blocks_do_not_show(
    models: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    job = recipe(method, models)
    whole = merged(Engine(), job)
    for module in (family, groups, runner):
        monkeypatch.setattr(module, "SHORT_ELEMENTS", 100, raising=False)
        monkeypatch.setattr(module, "GROUP_ELEMENTS", 150, raising=False)
    monkeypatch.setattr(runner, "PIECE_ELEMENTS", 77)
    monkeypatch.setattr(runner, "EAGER_RUN_ELEMENTS", 154)
    monkeypatch.setattr(magnitudes, "_SMALL_BLOCK", 100)
    assert same(merged(Engine(), job), whole)


def test_the_same_bits_in_another_process_with_other_threads(models: list[str], tmp_path: Path) -> None:
    code = f"""
import torch
torch.set_num_threads(2)
from merge_engine.engine import Engine
from merge_engine.spec.recipe import parse_recipe, recipe_data
import json, sys
job = parse_recipe(json.loads(sys.stdin.read()))
torch.save(dict(Engine(seed=5).stream(job)), {str(tmp_path / "out.pt")!r})
"""
    import json

    from merge_engine.spec.recipe import recipe_data

    for method in ("dare_ties", "slerp"):
        job = recipe(method, models)
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(recipe_data(job)), text=True, check=True
        )
        assert same(torch.load(tmp_path / "out.pt"), merged(Engine(seed=5), job))


def _with_integers(folder: Path, seed: int, first: int) -> str:
    tensors = toy.random_tensors(toy.config(), seed)
    integers = {"model.position_ids": torch.arange(5) + first, "model.steps": torch.tensor(100 + seed)}
    return str(toy.save(folder, toy.config(), tensors | integers))


def test_integer_tensors_are_copied_from_the_base(tmp_path: Path) -> None:
    folders = [_with_integers(tmp_path / name, seed, 0) for seed, name in enumerate(("base", "a"))]
    result = merged(Engine(), recipe("task_arithmetic", folders))
    assert result["model.position_ids"].tolist() == [0, 1, 2, 3, 4]
    assert int(result["model.steps"]) == 100


def test_integers_that_differ_are_not_merged(tmp_path: Path) -> None:
    folders = [_with_integers(tmp_path / name, seed, seed) for seed, name in enumerate(("base", "a"))]
    with pytest.raises(
        CheckpointError, match=r"the integers of tensor 'model\.position_ids' are not those of"
    ):
        merged(Engine(), recipe("task_arithmetic", folders))


def test_numbers_of_one_byte_are_read_in_the_dtype_of_the_merge(tmp_path: Path) -> None:
    tensors = toy.random_tensors(toy.config(), 1, dtype=torch.float8_e4m3fn)
    short = str(toy.save(tmp_path / "short", toy.config(), tensors))
    base, _ = toy.family(tmp_path / "family", sources="a")
    half = {"weight": 0.5}
    entries = [{"model": model, "parameters": half} for model in (short, base)]
    data = {"merge_method": "linear", "models": entries, "dtype": "bfloat16"}
    result = merged(Engine(compile="never"), parse_recipe(data))
    plain = merged(Engine(), parse_recipe({"merge_method": "passthrough", "models": [{"model": base}]}))
    for name, tensor in tensors.items():
        exact = (tensor.float() + plain[name].float()) / 2
        assert torch.equal(result[name], exact.bfloat16())


def test_without_dtype_the_models_own_is_kept(tmp_path: Path) -> None:
    folders = toy.family(tmp_path, sources="a", dtype=torch.float16)
    job = parse_recipe({"merge_method": "passthrough", "models": [{"model": folders[1]}]})
    assert {tensor.dtype for tensor in merged(Engine(), job).values()} == {torch.float16}


def test_tied_heads_are_written_once(tmp_path: Path) -> None:
    settings = toy.config(tie_word_embeddings=True)
    tensors = toy.random_tensors(settings, 0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    folder = str(toy.save(tmp_path / "a", settings, tensors))
    job = parse_recipe({"merge_method": "passthrough", "models": [{"model": folder}], "dtype": "bfloat16"})
    assert "lm_head.weight" not in merged(Engine(), job)


def test_source_files_are_mapped_not_changed(models: list[str]) -> None:
    files = [file for model in models for file in Path(model).glob("*.safetensors")]
    before = [file.read_bytes() for file in files]
    merged(Engine(), recipe("ties", models))
    assert [file.read_bytes() for file in files] == before

"""Merged folders: loadable, equal to the stream, complete or absent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from merge_engine.engine import Engine
from merge_engine.errors import OutputError, PlanError
from merge_engine.folder import merge_config, write_model
from merge_engine.spec.recipe import Recipe, parse_recipe
from merge_engine.spec.yaml_io import dump_yaml
from tests.merge_engine import toy

TEMPLATE = "{{ messages }}"


def tokenizer(folder: Path, *, template: str = TEMPLATE, vocabulary: dict[str, int] | None = None) -> None:
    vocabulary = vocabulary or {"a": 0, "b": 1}
    data = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    folders = toy.family(tmp_path / "models", sources="ab")
    for folder in folders:
        tokenizer(Path(folder))
    (Path(folders[0]) / "generation_config.json").write_text('{"max_new_tokens": 7}')
    return folders


def recipe(models: list[str], **more: Any) -> Recipe:
    entries = [{"model": model, "parameters": {"weight": 0.4, "density": 0.5}} for model in models[1:]]
    return parse_recipe(
        {"merge_method": "dare_ties", "base_model": models[0], "models": entries, "dtype": "bfloat16", **more}
    )


def stored(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            assert content.metadata() == {"format": "pt"}
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    return tensors


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "models")


@pytest.mark.parametrize("shard_bytes", [5e9, 20_000])
def test_disk_is_memory(models: list[str], tmp_path: Path, shard_bytes: float) -> None:
    job = recipe(models)
    write_model(Engine(seed=2), job, tmp_path / "out", shard_bytes=shard_bytes)
    resident = {
        name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in toy.shapes(toy.config()).items()
    }
    for _ in Engine(seed=2).stream(job, resident):
        pass
    on_disk = stored(tmp_path / "out")
    assert sorted(on_disk) == sorted(resident)
    assert all(torch.equal(on_disk[name], resident[name]) for name in resident)
    assert left_over(tmp_path) == ["out"]


def test_shards_and_index_are_as_transformers_writes_them(models: list[str], tmp_path: Path) -> None:
    write_model(Engine(), recipe(models), tmp_path / "out", shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert sorted(set(index["weight_map"].values())) == files
    sizes = [(tmp_path / "out" / file).stat().st_size for file in files]
    assert max(sizes) < 22_000
    assert index["metadata"]["total_size"] == 2 * index["metadata"]["total_parameters"]


def test_transformers_loads_it(models: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    job = recipe(models, out_dtype="float32")
    write_model(Engine(seed=2), job, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float32
    streamed = dict(Engine(seed=2).stream(job))
    assert all(torch.equal(tensor, streamed[name]) for name, tensor in loaded.state_dict().items())
    assert loaded(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"max_new_tokens": 7}


def test_slices_change_the_number_of_layers(models: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for number, model in enumerate(models):
        file = Path(model) / "config.json"
        settings = json.loads(file.read_text()) | {
            "layer_types": ["full_attention"] * 4,
            "layer_ids": [number] * 4,
        }
        file.write_text(json.dumps(settings))
    slices = [{"sources": [{"model": name, "layer_range": [1, 4]}]} for name in models[:2]]
    write_model(Engine(), parse_recipe({"merge_method": "passthrough", "slices": slices}), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["num_hidden_layers"] == 6
    assert settings["layer_ids"] == [0, 0, 0, 1, 1, 1]
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers) == 6


def test_an_existing_folder_is_left_alone(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(OutputError, match="already exists"):
        write_model(Engine(), recipe(models), tmp_path / "out")
    assert left_over(tmp_path / "out") == ["precious"]


def test_a_full_disk_leaves_nothing(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; nothing was left there"):
        write_model(Engine(), recipe(models), tmp_path / "out", shard_bytes=20_000)
    assert left_over(tmp_path) == []


def test_a_file_size_limit_leaves_nothing(models: list[str], tmp_path: Path) -> None:
    code = f"""
import resource, json, sys
from pathlib import Path
from merge_engine.engine import Engine
from merge_engine.errors import OutputError
from merge_engine.folder import merge_config
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    merge_config(sys.stdin.read(), Path({str(tmp_path / "out")!r}))
except OutputError as error:
    print(error)
"""
    from merge_engine.spec.recipe import recipe_data

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=dump_yaml(recipe_data(recipe(models))),
        text=True,
        capture_output=True,
    )
    assert "File too large; nothing was left there" in done.stdout, done.stderr
    assert left_over(tmp_path) == []


def test_a_killed_merge_leaves_nothing_that_loads(models: list[str], tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from merge_engine import folder
from merge_engine.folder import merge_config
def stop(*arguments):
    print("writing", flush=True)
    time.sleep(60)
folder.write_json = stop
merge_config(sys.stdin.read(), Path({str(tmp_path / "out")!r}))
"""
    from merge_engine.spec.recipe import recipe_data

    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(dump_yaml(recipe_data(recipe(models))))
    child.stdin.close()
    assert child.stdout.readline() == "writing\n"  # everything is there but the config
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()
    (partial,) = tmp_path.glob(".out.*.partial")
    assert not list(partial.glob("**/config.json"))


def test_a_recipe_that_does_not_fit_writes_nothing(models: list[str], tmp_path: Path) -> None:
    other = str(
        toy.save(
            tmp_path / "models" / "x", toy.config(hidden=64), toy.random_tensors(toy.config(hidden=64), 0)
        )
    )
    with pytest.raises(PlanError):
        write_model(Engine(), recipe([*models, other]), tmp_path / "out")
    assert left_over(tmp_path) == []


def test_tokenizer_and_templates_come_from_where_the_recipe_says(models: list[str], tmp_path: Path) -> None:
    base, a, b = (Path(model) for model in models)
    tokenizer(a, template="{{ a }}")
    tokenizer(b, template="{{ a }}")

    def template(name: str, **more: Any) -> str | None:
        from merge_engine.vocabulary.chat_templates import template_of

        write_model(Engine(), recipe(models, **more), tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").read_text() == (base / "tokenizer.json").read_text()
        return template_of(tmp_path / name)

    assert template("default") == TEMPLATE
    assert template("base", tokenizer_source="base") == TEMPLATE
    assert template("union", tokenizer_source="union") == TEMPLATE
    assert template("model", tokenizer_source=str(a)) == "{{ a }}"
    assert template("auto", chat_template="auto") == "{{ a }}"
    assert template("own", chat_template="{{ own }}") == "{{ own }}"


def test_a_template_of_unknown_name_writes_nothing(models: list[str], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"chat_template: unknown: 'alpaka' \(did you mean alpaca"):
        write_model(Engine(), recipe(models, chat_template="alpaka"), tmp_path / "out")
    assert left_over(tmp_path) == []


def test_tensors_of_mixed_sizes_stay_aligned(tmp_path: Path) -> None:
    settings = toy.config()
    tensors = toy.random_tensors(settings, 0)
    tensors["model.layers.0.odd"] = torch.zeros(3, dtype=torch.bfloat16)
    tensors["model.layers.1.ids"] = torch.arange(3)
    for i in (1, 2, 3):
        tensors[f"model.layers.{i}.odd"] = torch.zeros(3, dtype=torch.float32)
    for i in (0, 2, 3):
        tensors[f"model.layers.{i}.ids"] = torch.arange(3)
    model = toy.save(tmp_path / "models" / "a", settings, tensors)
    merge_config(f"merge_method: passthrough\nmodels: [{{model: {model}}}]\n", tmp_path / "out")
    on_disk = stored(tmp_path / "out")
    assert all(torch.equal(on_disk[name], tensor) for name, tensor in tensors.items())

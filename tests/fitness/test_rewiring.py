"""Resident layers put together in other ways: the same as the model that is saved and loaded."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fitness.errors import ModelError
from fitness.resident import ResidentModel
from fitness.transformers_backend import TransformersBackend
from tests.fitness.conftest import save_tiny_llama, tiny_tokenizer
from tests.fitness.test_architectures import SHARED, SMALL, generated, save_model

TASKS = (("tiny_say", "exact_match,whole"), "tiny_pick")
Weights = dict[str, Tensor]
Path_ = Sequence[tuple[Weights, int]]
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaConfig": SMALL | {"tie_word_embeddings": True},
    "GPT2Config": SHARED | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "Qwen3Config": SMALL,
    "MistralConfig": SMALL | {"sliding_window": 8},
}


def stacked(first: Weights, path: Path_, stack: str) -> Weights:
    """The tensors of ``first`` around the layers of ``path``."""
    made = {name: tensor for name, tensor in first.items() if f"{stack}." not in name}
    for place, (weights, layer) in enumerate(path):
        own = f"{stack}.{layer}."
        made |= {
            name.replace(own, f"{stack}.{place}."): tensor for name, tensor in weights.items() if own in name
        }
    return made


def exported(folder: Path, weights: Weights, layers: int, out: Path) -> Path:
    """A model folder of these weights, as deep as ``layers``."""
    from safetensors.torch import save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    changed = {"num_hidden_layers": layers, "n_layer": layers}
    config |= {key: value for key, value in changed.items() if key in config}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:1] * layers
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.clone() for name, tensor in weights.items()}, out / "model.safetensors")
    tiny_tokenizer().save_pretrained(out)
    return out


@pytest.mark.parametrize("config", CONFIGS)
def test_answers_are_those_of_the_exported_model_at_any_depth(
    config: str, tmp_path: Path, make_suite: Callable[..., Any], weights: Callable[[Path], Any]
) -> None:
    from transformers import AutoModelForCausalLM

    save_model(tmp_path / "a", config, CONFIGS[config])
    save_model(tmp_path / "b", config, CONFIGS[config], seed=1)
    a, b = dict(weights(tmp_path / "a")), dict(weights(tmp_path / "b"))
    stack = "h" if config == "GPT2Config" else "layers"
    backend = TransformersBackend(
        tmp_path / "a", make_suite(*TASKS), dtype="float32", batch_size=16, most_layers=6
    )
    assert backend.tensors() == {}
    for number, path in enumerate(
        [[(a, 0), (b, 1), (b, 1), (a, 0), (b, 0), (a, 1)], [(b, 1)], [(a, 0), (a, 1)]]
    ):
        tensors = stacked(a, path, stack)
        folder = exported(tmp_path / "a", tensors, len(path), tmp_path / str(number))
        backend.load(tensors.items())
        report = backend.score("search")

        plain = TransformersBackend(folder, make_suite(*TASKS), dtype="float32", batch_size=16)
        plain.load(weights(folder))
        assert plain.score("search") == report

        say = backend._suite.tasks.built("search")[0]
        answers = [instance.resps[0] for instance in say.instances]
        reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert answers == [generated(reloaded, request.prompt) for request in say.requests]


@pytest.fixture
def rewired(model_folder: Path) -> ResidentModel:
    return ResidentModel(model_folder, dtype=torch.float32, device=torch.device("cpu"), rewires=True)


def test_nothing_is_copied_and_a_layer_may_stand_twice(
    rewired: ResidentModel, model_folder: Path, weights: Callable[[Path], Any]
) -> None:
    a = dict(weights(model_folder))
    rewired.load(stacked(a, [(a, 1)] * 3, "layers").items())
    layers = rewired._model.model.layers
    assert len(layers) == 3
    assert {layer.mlp.down_proj.weight.data_ptr() for layer in layers} == {
        a["model.layers.1.mlp.down_proj.weight"].data_ptr()
    }
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2]
    assert rewired._model.lm_head.weight.data_ptr() == a["lm_head.weight"].data_ptr()


def test_the_last_candidates_tensors_are_free_before_the_next_ones_are_made(
    rewired: ResidentModel, model_folder: Path, weights: Callable[[Path], Any]
) -> None:
    first = dict(weights(model_folder))
    watched = weakref.ref(first["model.layers.1.mlp.up_proj.weight"].untyped_storage())
    rewired.load(first.items())
    del first

    def stream() -> Any:
        assert all(parameter.numel() == 0 for parameter in rewired._model.parameters())
        yield from weights(model_folder)

    rewired.load(stream())
    assert watched() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("model.layers.0.mlp.up_proj.weight"),
            "0.mlp.up_proj.weight: missing from the stream",
        ),
        (
            lambda w: w.update({"model.layers.1.mlp.extra": torch.zeros(1)}),
            "extra: the model has no such tensor",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            r"norm.weight: shape \(3,\), expected \(32,\)",
        ),
        (
            lambda w: w.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(64, 32)}),
            "layers.2.* missing",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    rewired: ResidentModel,
    model_folder: Path,
    weights: Callable[[Path], Any],
    change: Callable[[Weights], Any],
    message: str,
) -> None:
    tensors = dict(weights(model_folder))
    change(tensors)
    with pytest.raises(ModelError, match=message):
        rewired.load(tensors.items())
    rewired.load(weights(model_folder))  # and the next candidate is taken


def test_a_tied_head_that_differs_is_refused(tmp_path: Path, weights: Callable[[Path], Any]) -> None:
    folder = save_tiny_llama(tmp_path, tie_word_embeddings=True)
    rewired = ResidentModel(folder, dtype=torch.float32, device=torch.device("cpu"), rewires=True)
    tensors = dict(weights(folder))
    embeddings = tensors["model.embed_tokens.weight"]
    rewired.load({**tensors, "lm_head.weight": embeddings.clone()}.items())
    with pytest.raises(ModelError, match=r"lm_head\.weight: differs from model.embed_tokens.weight"):
        rewired.load({**tensors, "lm_head.weight": embeddings + 1}.items())


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (
            "Gemma3TextConfig",
            SMALL | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            "layers are of several kinds .layer_types in the config",
        ),
        ("SmolLM3Config", SMALL | {"no_rope_layers": [1, 0]}, "layers are of several kinds"),
        (
            "GPTNeoConfig",
            SHARED
            | {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
            },
            "layers are of several kinds",
        ),
    ],
)
def test_layers_of_several_kinds_are_refused(
    config: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(tmp_path, config, settings)
    with pytest.raises(ModelError, match=f"{message}.*; score it with --on-disk$"):
        ResidentModel(tmp_path, dtype=torch.float32, device=torch.device("cpu"), rewires=True)

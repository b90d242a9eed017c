"""model+adapter: the tensors are what peft's own merge gives; what cannot be merged is refused."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_engine.adapter_files import Change, LowRank
from merge_engine.adapters import AdaptedTensors
from merge_engine.checkpoint_header import TensorInfo
from merge_engine.engine import Engine
from merge_engine.errors import CheckpointError
from merge_engine.fingerprint import fingerprint
from merge_engine.plan import TensorRef
from merge_engine.source_tensors import SourceTensors
from merge_engine.sources import open_source, resolve
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy

Tensors = dict[str, Tensor]
Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = toy.save(tmp_path / "model", toy.config(), toy.random_tensors(toy.config(), 0), shards=2)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def tensors_of(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def merged(model: Path, adapter: Path) -> Tensors:
    """Every tensor of the model with the adapter."""
    reference = f"{model}+{adapter}"
    sources = SourceTensors()
    return {
        name: sources.tensor(TensorRef(model=reference, name=name)).view(info.shape)
        for name, info in sources.header(reference).tensors.items()
    }


def save_adapter(folder: Path, tensors: Mapping[str, Tensor] | None = None, **settings: Any) -> Path:
    """An adapter of rank 2 on one projection, unless told otherwise."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(low_rank() if tensors is None else dict(tensors), folder / "adapter_model.safetensors")
    return folder


def low_rank(prefix: str = Q_PROJ, *, rank: int = 2, rows: int = 32, columns: int = 32) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    return {
        f"{prefix}.lora_A.weight": torch.randn(rank, columns, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(rows, rank, generator=generator),
    }


PEFT_CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 12},
    "rank-stabilised": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "k_proj": 3},
        "alpha_pattern": {"^model.layers.1.self_attn.k_proj": 32},
    },
    "dora": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head"]},
    "modules_to_save": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    "tied": {"target_modules": ["embed_tokens", "q_proj"]},
    "conv1d": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    "conv1d-dora": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
}


def small_model(case: str) -> Any:
    import transformers

    torch.manual_seed(0)
    if case.startswith("conv1d"):
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32)
        )
    settings = toy.config(layers=2, tie_word_embeddings=case == "tied")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(settings))


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", PEFT_CASES)
def test_peft_merges_to_the_same_tensors(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    small_model(case).to(dtype).save_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(small_model(case).to(dtype), peft.LoraConfig(r=4, **PEFT_CASES[case]))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    adapted.save_pretrained(tmp_path / "adapter")

    expected = adapted.merge_and_unload().state_dict()
    before = tensors_of(tmp_path / "model")
    found = merged(tmp_path / "model", tmp_path / "adapter")
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert int(toy.ulps(tensor, expected[name]).max()) <= 1, name
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, before[name])}
    assert 0 < len(changed) < len(found)


def test_all_but_the_adapted_tensors_is_the_models(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    before, after = tensors_of(model), merged(model, adapter)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert [key for key in before if not torch.equal(before[key], after[key])] == [name]
    a, b = low_rank().values()
    assert torch.equal(after[name], (before[name].float() + 3.0 * (b @ a)).bfloat16())
    assert resolve(f"{model}+{adapter}") == model


def test_a_recipe_names_model_and_adapter_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    before = sorted(tmp_path.rglob("*"))
    data = {
        "merge_method": "passthrough",
        "models": [{"model": f"{model}+{adapter}", "parameters": {"scale": 1.0}}],
        "dtype": "bfloat16",
    }
    found = dict(Engine(compile="never").stream(parse_recipe(data)))
    expected = merged(model, adapter)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_large_weights_are_adapted_some_rows_at_a_time(
    transposed: bool, dora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, a, b, norms = (
        torch.randn(shape, generator=generator) for shape in ((48, 20), (3, 20), (48, 3), (48,))
    )
    if transposed:
        weight = weight.T.contiguous()
    stored = {"weight": weight, "a": a, "b": b, "norms": norms}

    class InMemory:
        def tensor(self, info: TensorInfo) -> Tensor:
            return stored[info.file.name].view(-1)

    def info(name: str) -> TensorInfo:
        return TensorInfo(dtype="F32", shape=tuple(stored[name].shape), file=Path(name), begin=0, end=0)

    change = Change(
        replacement=None,
        low_rank=LowRank(
            a=info("a"),
            b=info("b"),
            scale=0.5,
            transposed=transposed,
            embedding=False,
            magnitude=info("norms") if dora else None,
        ),
    )
    whole = AdaptedTensors(InMemory()).tensor(info("weight"), change)
    monkeypatch.setattr("merge_engine.adapters._BLOCK_ELEMENTS", 60)
    in_blocks = AdaptedTensors(InMemory()).tensor(info("weight"), change)
    assert torch.allclose(whole, in_blocks, atol=1e-6)
    expected = (weight.T if transposed else weight) + 0.5 * (b @ a)
    if dora:
        expected *= (norms / expected.norm(dim=1))[:, None]
    assert torch.allclose(in_blocks.view(weight.shape), expected.T if transposed else expected, atol=1e-5)


def test_a_search_keeps_no_adapted_copy(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [Q_PROJ.replace(".1.", f".{i}.") for i in range(3)]
    tensors = {key: value for name in names for key, value in low_rank(name).items()}
    reference = f"{model}+{save_adapter(tmp_path / 'adapter', tensors)}"
    made: list[weakref.ref[Tensor]] = []
    make = AdaptedTensors.tensor

    def noted(self: AdaptedTensors, *arguments: Any) -> Tensor:
        tensor = make(self, *arguments)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(AdaptedTensors, "tensor", noted)
    entries = [{"model": reference, "parameters": {"weight": 1.0, "density": 0.5}}]
    recipe = parse_recipe({"merge_method": "ties", "base_model": str(model), "models": entries})
    engine = Engine(compile="never")
    first = {name: tensor.clone() for name, tensor in engine.stream(recipe)}
    again = dict(engine.stream(recipe))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert made
    assert not any(tensor() is not None for tensor in made)


def test_the_fingerprint_is_of_model_and_adapter(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    reference = f"{model}+{adapter}"
    first = fingerprint(open_source(reference))
    assert first != fingerprint(open_source(str(model)))
    assert first == fingerprint(open_source(reference))
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("6", "7"))
    second = fingerprint(open_source(reference))
    (model / "config.json").write_text((model / "config.json").read_text().replace("1e-05", "1e-06"))
    assert len({first, second, fingerprint(open_source(reference))}) == 3


def test_pickled_adapters_are_read_too(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    expected = merged(model, adapter)
    torch.save(low_rank(), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    found = merged(model, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (None, {"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        (None, {"bias": "all"}, "bias is 'all'; only 'none'"),
        (None, {"layer_replication": [[0, 2]]}, "with layer_replication cannot be merged"),
        (None, {"init_lora_weights": "pissa"}, "'pissa', which changes .* convert the adapter"),
        (None, {"r": 4}, "rank 2 and 2, adapter_config.json says 4"),
        (None, {"r": None}, "r in adapter_config.json is None, expected a positive number"),
        (None, {"rank_pattern": {"(": 2}}, "rank_pattern in adapter_config.json is no mapping"),
        (None, {"use_dora": True}, "use_dora in adapter_config.json and the weights do not agree"),
        (
            low_rank(Q_PROJ.replace(".1.", ".9.")),
            {},
            r"layers\.9\.\S+ matches no tensor of it; .* trained on",
        ),
        (low_rank(Q_PROJ.removeprefix("base_model.model.")), {}, "matches no tensor"),
        (low_rank(rows=16), {}, r"q_proj is \[32, 32\], its LoRA product \[16, 32\]"),
        (dict(list(low_rank().items())[:1]), {}, "only one of its two LoRA matrices"),
        ({f"{Q_PROJ}.weight": torch.zeros(32, 16)}, {}, r"is \[32, 32\], its replacement \[32, 16\]"),
        ({f"{Q_PROJ}.weight": torch.zeros(32, 32)}, {}, "holds no LoRA weights"),
        (
            {f"{Q_PROJ}.lora_A.weight": torch.zeros(2), f"{Q_PROJ}.lora_B.weight": torch.zeros(2)},
            {},
            "linear",
        ),
    ],
)
def test_refusals_say_what_is_wrong(
    model: Path, tmp_path: Path, tensors: Tensors | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        merged(model, save_adapter(tmp_path / "adapter", tensors, **settings))


def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    settings = toy.config(tie_word_embeddings=True)
    model = toy.save(tmp_path / "model", settings, toy.random_tensors(settings, 0))
    adapter = save_adapter(tmp_path / "adapter", low_rank("base_model.model.lm_head", rows=64))
    with pytest.raises(CheckpointError, match="an output head that is tied to the embeddings"):
        merged(model, adapter)


def test_a_folder_without_weights_is_no_adapter(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        merged(model, adapter)


def test_a_folder_that_is_no_adapter_is_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config.json: .*is this a PEFT adapter folder"):
        merged(model, model)


def test_integer_weights_cannot_be_adapted(tmp_path: Path) -> None:
    tensors = toy.random_tensors(toy.config(), 0)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    model = toy.save(tmp_path / "model", toy.config(), tensors)
    adapter = save_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is I8; only BF16, F16, F32, F64 can be adapted"):
        merged(model, adapter)

"""model+adapter: the merged folder holds what peft's own merge gives; what cannot be merged is refused."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_engine import adapters
from merge_engine.adapters import merged_folder
from merge_engine.engine import Engine
from merge_engine.errors import CheckpointError
from merge_engine.sources import resolve
from merge_engine.spec.recipe import parse_recipe
from tests.merge_engine import toy

Tensors = dict[str, Tensor]
Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGEVOLVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
    merged = tensors_of(merged_folder(tmp_path / "model", tmp_path / "adapter"))
    assert merged.keys() == before.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == dtype
        assert int(toy.ulps(tensor, expected[name]).max()) <= 1, name
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    assert 0 < len(changed) < len(merged)


def test_all_but_the_adapted_tensors_is_the_models(model: Path, tmp_path: Path) -> None:
    merged = merged_folder(model, save_adapter(tmp_path / "adapter"))
    before, after = tensors_of(model), tensors_of(merged)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert [key for key in before if not torch.equal(before[key], after[key])] == [name]
    a, b = low_rank().values()
    assert torch.equal(after[name], (before[name].float() + 3.0 * (b @ a)).bfloat16())
    for file in ("config.json", "tokenizer.json"):
        assert (merged / file).read_bytes() == (model / file).read_bytes()


def test_a_recipe_names_model_and_adapter_and_a_source_is_written_once(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{model}+{save_adapter(tmp_path / 'adapter')}"
    data = {
        "merge_method": "passthrough",
        "models": [{"model": reference, "parameters": {"scale": 1.0}}],
        "dtype": "bfloat16",
    }
    merged = dict(Engine().stream(parse_recipe(data)))
    assert [folder.parent for folder in (cache / "adapters").iterdir()] == [cache / "adapters"]
    monkeypatch.setattr(adapters, "_write", None)
    expected = tensors_of(resolve(reference))
    assert merged.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


def test_what_changes_in_model_or_adapter_makes_another_folder(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    first = merged_folder(model, adapter)
    (model / "tokenizer.json").write_text('{"version": "2"}')
    second = merged_folder(model, adapter)
    (adapter / "adapter_config.json").write_text(
        (adapter / "adapter_config.json").read_text().replace("6", "7")
    )
    assert len({first, second, merged_folder(model, adapter)}) == 3
    assert (second / "tokenizer.json").read_text() == '{"version": "2"}'


def test_workers_may_race(model: Path, tmp_path: Path, cache: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        folders = pool.starmap(merged_folder, [(model, adapter)] * 3, chunksize=1)
    assert list((cache / "adapters").iterdir()) == [folders[0]]
    assert set(folders) == {folders[0]}


def test_the_loser_of_a_race_takes_the_winners_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    copy_files = adapters.copy_files

    def overtaken(*arguments: Any) -> None:
        copy_files(*arguments)
        monkeypatch.setattr(adapters, "copy_files", copy_files)
        winners.append(merged_folder(model, adapter))

    winners: list[Path] = []
    monkeypatch.setattr(adapters, "copy_files", overtaken)
    assert merged_folder(model, adapter) == winners[0]
    assert list(winners[0].parent.iterdir()) == winners


def test_a_cache_that_cannot_be_written_is_said_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MERGEVOLVE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be written: .*MERGEVOLVE_CACHE names another place"):
        merged_folder(model, save_adapter(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("variable", "place"), [("XDG_CACHE_HOME", "mergevolve"), ("HOME", ".cache/mergevolve")]
)
def test_where_the_cache_is(
    variable: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MERGEVOLVE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert adapters.cache_folder() == tmp_path / place


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
    model: Path, tmp_path: Path, cache: Path, tensors: Tensors | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        merged_folder(model, save_adapter(tmp_path / "adapter", tensors, **settings))
    assert not cache.exists()


def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path) -> None:
    settings = toy.config(tie_word_embeddings=True)
    model = toy.save(tmp_path / "model", settings, toy.random_tensors(settings, 0))
    adapter = save_adapter(tmp_path / "adapter", low_rank("base_model.model.lm_head", rows=64))
    with pytest.raises(CheckpointError, match="an output head that is tied to the embeddings"):
        merged_folder(model, adapter)


def test_pickled_adapters_are_refused_with_a_remedy(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors; if .* pickled .* convert it"):
        merged_folder(model, adapter)


def test_a_folder_that_is_no_adapter_is_refused(model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config.json: .*is this a PEFT adapter folder"):
        merged_folder(model, model)


def test_integer_weights_cannot_be_adapted(tmp_path: Path) -> None:
    tensors = toy.random_tensors(toy.config(), 0)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    model = toy.save(tmp_path / "model", toy.config(), tensors)
    adapter = save_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is I8; only BF16, F16, F32, F64 can be adapted"):
        merged_folder(model, adapter)

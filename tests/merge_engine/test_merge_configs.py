"""Every config in configs/merge runs, on models like the demo's but random, and gives a model that runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from merge_engine.documents import read_documents
from merge_engine.folder import merge_config
from merge_engine.spec.methods import METHODS
from merge_engine.spec.yaml_io import load_yaml_documents
from tests.merge_engine import toy

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from demo_models.vocabulary import WORDS, build_tokenizer  # noqa: E402
from demo_variants.build import build_variants  # noqa: E402

CONFIGS = sorted((ROOT / "configs" / "merge").glob("*.yml"))
DEMO = ".cache/demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random models under the names of the demo's, with its tokenizer, and what is made of them."""
    folder = tmp_path_factory.mktemp("demo")
    settings = toy.config(layers=6, vocabulary=len(WORDS), bos_token_id=1, eos_token_id=2)
    base = toy.random_tensors(settings, 0, scale=0.1)
    for seed, name in enumerate(("base", "arithmetic", "text", "choice")):
        tensors = toy.random_tensors(settings, seed, near=base, scale=0.05) if seed else base
        toy.save(folder / name, settings, tensors)
        build_tokenizer().save_pretrained(folder / name)
    build_variants(folder)
    return folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_runs(config: Path, demo: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge_config(config.read_text().replace(DEMO, str(demo)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) <= model.config.vocab_size
    ids = tokenizer("<s> 3 8 + 4 7 = cat never", return_tensors="pt").input_ids
    assert bool(torch.isfinite(model(ids).logits).all())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_command_and_cost(config: Path) -> None:
    head = [line for line in config.read_text().splitlines() if line.startswith("#")]
    assert f"#   mergevolve merge configs/merge/{config.name} .cache/merged" in head
    assert any(line.startswith("# Cost: ") for line in head)
    assert all(len(line) <= 110 for line in config.read_text().splitlines())
    needs_variants = any(name in config.read_text() for name in ("text_lora", "choice_reordered"))
    assert any("demo_variants" in line for line in head) == needs_variants


def test_every_method_has_one() -> None:
    documents = [entry for config in CONFIGS for entry in read_documents(config.read_text())]
    assert {entry.recipe.merge_method for entry in documents} == set(METHODS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_mergekit_reads_it(config: Path) -> None:
    mergekit = pytest.importorskip("mergekit.config")
    if "Not in mergekit." in config.read_text():
        return
    for document in load_yaml_documents(config.read_text()):
        assert mergekit.MergeConfiguration.model_validate(document).merge_method


def test_the_variants_say_what_they_are_made_of(demo: Path) -> None:
    """The adapter comes close to the text expert; the reordered model says what the choice expert says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from merge_engine.plan import TensorRef
    from merge_engine.source_tensors import SourceTensors

    name = "model.layers.2.mlp.up_proj.weight"
    base, text, adapted = (
        SourceTensors().tensor(TensorRef(model=model, name=name)).float()
        for model in (str(demo / "base"), str(demo / "text"), f"{demo / 'base'}+{demo / 'text_lora'}")
    )
    assert torch.linalg.vector_norm(adapted - text) < 0.7 * torch.linalg.vector_norm(base - text)

    logits = []
    for folder in (demo / "choice", demo / "choice_reordered"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        ids = tokenizer("<s> 3 cat odd", return_tensors="pt").input_ids
        logits.append(model(ids).logits[0, :, tokenizer.convert_tokens_to_ids(["cat", "7", "<s>"])])
    assert torch.equal(*logits)
    assert json.loads((demo / "choice_reordered" / "config.json").read_text())["vocab_size"] == len(WORDS) + 2

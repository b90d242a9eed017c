"""The resident backend: weights in, the same scores out, and clear words when something does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fitness.errors import ModelError, OutOfMemory, ScoringError, SuiteError
from fitness.suite import SuiteSpec, TaskSpec
from fitness.transformers_backend import TransformersBackend
from tests.fitness.conftest import (
    EXACT_MATCH,
    generation_documents,
    save_tiny_llama,
    tiny_tokenizer,
    write_task,
)

SAY = ("tiny_say", "exact_match,first-letter")
MIXED = (SAY, "tiny_pick", ("tiny_next", "perplexity,none", -0.01))


@pytest.fixture
def build(model_folder: Path, make_suite: Callable[..., Any]) -> Callable[..., TransformersBackend]:
    def make(*tasks: Any, folder: Path = model_folder, dtype: str = "float32", **settings: Any) -> Any:
        return TransformersBackend(folder, make_suite(*tasks, **settings), dtype=dtype, batch_size=16)

    return make


def test_score_depends_on_the_weights_alone(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path, other_folder: Path
) -> None:
    backend = build(*MIXED, dtype="bfloat16", holdout=0.5)
    backend.load(weights(model_folder))
    first = backend.score("search")
    backend.score("holdout")
    backend.load(weights(other_folder))
    other = backend.score("search")
    backend.load(weights(model_folder))
    assert backend.score("search") == first
    assert other != first

    fresh = build(*MIXED, dtype="bfloat16", holdout=0.5)
    fresh.load(weights(model_folder))
    assert fresh.score("search") == first


def test_writing_into_the_resident_tensors_is_loading(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path, other_folder: Path
) -> None:
    copied, in_place = build(*MIXED), build(*MIXED)
    copied.load(weights(other_folder))
    in_place.load(weights(model_folder))

    def stream() -> Any:
        for name, tensor in weights(other_folder):
            yield name, in_place.tensors()[name].copy_(tensor)

    before = {name: tensor.data_ptr() for name, tensor in in_place.tensors().items()}
    in_place.load(stream())
    assert {name: tensor.data_ptr() for name, tensor in in_place.tensors().items()} == before
    assert in_place.score("search") == copied.score("search")


def test_splits_are_disjoint_and_weights_may_be_negative(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build(*MIXED, holdout=0.3)
    backend.load(weights(model_folder))
    search, held = backend.score("search"), backend.score("holdout")
    for mine, theirs in zip(search.tasks, held.tasks, strict=True):
        assert mine.task == theirs.task
        assert not set(mine.item_ids) & set(theirs.item_ids)
    assert sorted(search.tasks[0].item_ids + held.tasks[0].item_ids) == list(range(30))
    say, pick, follow = search.tasks
    assert follow.value > 1
    assert search.score == pytest.approx(say.value + pick.value - 0.01 * follow.value)


def test_the_digest_follows_the_items_and_not_the_weights(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path, other_folder: Path
) -> None:
    backend = build("tiny_pick")
    backend.load(weights(model_folder))
    backend.score("search")
    assert backend.suite_digest == build("tiny_pick", folder=other_folder).suite_digest
    others = [build("tiny_pick", limit=20), build("tiny_pick", num_fewshot=1), build("tiny_letter")]
    assert len({backend.suite_digest, *(other.suite_digest for other in others)}) == 4


def test_items_are_those_of_the_ids(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    everything, drawn = build("tiny_pick"), build("tiny_pick", limit=7, shuffle=True, seed=3)
    for backend in (everything, drawn):
        backend.load(weights(model_folder))
    whole, part = everything.score("search").tasks[0], drawn.score("search").tasks[0]
    assert len(part.item_ids) == 7
    assert part.item_ids != tuple(range(7))
    assert part.items == tuple(whole.items[item] for item in part.item_ids)


def test_held_out_tasks_of_their_own(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build("tiny_pick", holdout=(TaskSpec(name="tiny_letter"),), limit=5)
    backend.load(weights(model_folder))
    assert [task.task for task in backend.score("holdout").tasks] == ["tiny_letter"]
    assert backend.score("search").tasks[0].item_ids == (0, 1, 2, 3, 4)


def test_a_group_counts_as_the_mean_over_its_items(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build(("tiny_all", "acc,none", 2.0))
    backend.load(weights(model_folder))
    report = backend.score("search")
    assert sorted(task.task for task in report.tasks) == ["tiny_letter", "tiny_pick"]
    items = [item for task in report.tasks for item in task.items]
    assert report.score == pytest.approx(2 * sum(items) / len(items))


def test_no_held_out_items_no_score(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build("tiny_pick")
    with pytest.raises(ModelError, match="no weights are loaded"):
        backend.score("search")
    backend.load(weights(model_folder))
    with pytest.raises(ValueError, match="holds out no items"):
        backend.score("holdout")


@pytest.mark.parametrize("task", [SAY, "tiny_pick", "tiny_letter"])
def test_nan_weights_are_a_scoring_error(
    task: Any, build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build(task)
    backend.load([(name, torch.full_like(tensor, math.nan)) for name, tensor in weights(model_folder)])
    with pytest.raises(ScoringError, match="logits are NaN"):
        backend.score("search")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("f9,whole", "has no such metric; it has .*exact_match"),
        ("exact_match,strict", "has no such filter; it has whole, first-letter"),
    ],
)
def test_unknown_metrics_name_the_known_ones(
    metric: str, message: str, build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build(("tiny_say", metric))
    backend.load(weights(model_folder))
    with pytest.raises(ScoringError, match=message):
        backend.score("search")


def test_a_metric_without_a_value_is_a_scoring_error(
    tmp_path: Path, weights: Callable[[Path], Any], model_folder: Path
) -> None:
    (tmp_path / "utils.py").write_text("def nothing(document, answers):\n    return {'acc': None}\n")
    write_task(
        tmp_path, "empty", generation_documents(3), output_type="generate_until", metric_list=EXACT_MATCH
    )
    path = tmp_path / "empty.yaml"
    path.write_text(
        path.read_text().replace("exact_match", "acc")
        + "process_results: !function utils.nothing\ngeneration_kwargs: {until: ['b'], max_gen_toks: 3}\n"
    )
    suite = SuiteSpec(tasks=(TaskSpec(name="empty"),), search_paths=(str(tmp_path),))
    backend = TransformersBackend(model_folder, suite, dtype="float32", batch_size=4)
    backend.load(weights(model_folder))
    with pytest.raises(ScoringError, match="task 'empty', metric 'acc,none'"):
        backend.score("search")


def test_load_lists_every_misfit(
    build: Callable[..., Any], weights: Callable[[Path], Any], model_folder: Path
) -> None:
    backend = build("tiny_pick")
    stream = dict(weights(model_folder))
    del stream["model.norm.weight"]
    stream["model.extra.weight"] = torch.zeros(1)
    stream["lm_head.weight"] = torch.zeros(3, 3)
    stream["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # old checkpoints have it
    with pytest.raises(ModelError) as caught:
        backend.load(stream.items())
    message = str(caught.value)
    assert "model.norm.weight: missing from the stream" in message
    assert "model.extra.weight: the model has no such tensor" in message
    assert "lm_head.weight: shape (3, 3), expected" in message
    assert "rotary" not in message
    with pytest.raises(ModelError, match="no weights are loaded"):
        backend.score("search")


def test_tied_weights_appear_once_and_must_agree(
    build: Callable[..., Any], weights: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = save_tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    backend = build("tiny_pick", folder=folder)
    stream = weights(folder)
    assert set(backend.tensors()) == {name for name, _ in stream}
    embedding = dict(stream)["model.embed_tokens.weight"]
    backend.load([("lm_head.weight", embedding.clone()), *stream])
    assert backend.score("search").tasks
    with pytest.raises(ModelError, match=r"lm_head.weight: differs from model.embed_tokens.weight"):
        backend.load([*stream, ("lm_head.weight", embedding + 1)])


def test_names_without_counterpart_are_refused(make_suite: Callable[..., Any], model_folder: Path) -> None:
    names = ["model.layers.0.mlp.experts.0.gate_proj.weight"]
    with pytest.raises(ModelError, match=r"in the checkpoint only: model.layers.0.mlp.experts.0"):
        TransformersBackend(
            model_folder, make_suite("tiny_pick"), dtype="float32", batch_size=1, checkpoint_names=names
        )


def test_out_of_memory_says_so(
    build: Callable[..., Any],
    weights: Callable[[Path], Any],
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = build("tiny_pick")
    backend.load(weights(model_folder))

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend._model._model, "forward", full)
    with pytest.raises(OutOfMemory, match=r"no memory for a batch of .* lower the batch size"):
        backend.score("search")


def test_chat_template_is_applied_where_there_is_one(
    build: Callable[..., Any], weights: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = save_tiny_llama(tmp_path / "chat")
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tiny_tokenizer(template).save_pretrained(folder)

    def prompt(**settings: Any) -> str:
        backend = build("tiny_pick", folder=folder, **settings)
        return str(backend._suite.tasks.built("search")[0].instances[0].args[0])

    assert prompt().endswith(":\n")
    assert prompt(apply_chat_template=True) == prompt()
    assert prompt(apply_chat_template=False).endswith(":")


def test_a_missing_chat_template_is_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(SuiteError, match="tokenizer has no chat template"):
        build("tiny_pick", apply_chat_template=True)


def test_fewshot_examples_precede_the_question(build: Callable[..., Any]) -> None:
    backend = build("tiny_pick", num_fewshot=2)
    prompt = backend._suite.tasks.built("search")[0].instances[0].args[0]
    assert prompt.count(":") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "it samples its answers; set do_sample: false"),
        ({"num_beams": 4}, "'num_beams': 4.* not supported"),
        ({"max_gen_toks": 96}, "generates up to 96 tokens, but the model's context has 96"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, model_folder: Path
) -> None:
    write_task(
        tmp_path,
        "odd",
        generation_documents(2),
        output_type="generate_until",
        generation_kwargs={"until": ["\n"]} | options,
        metric_list=EXACT_MATCH,
    )
    write_task(tmp_path, "lost", [], output_type="multiple_choice")
    (tmp_path / "lost.jsonl").unlink()
    suite = SuiteSpec(
        tasks=(TaskSpec(name="odd", metric="exact_match,none"), TaskSpec(name="lost")),
        search_paths=(str(tmp_path),),
    )
    with pytest.raises(SuiteError, match=message) as caught:
        TransformersBackend(model_folder, suite, dtype="float32", batch_size=1)
    assert [problem.task for problem in caught.value.problems] == ["lost", "odd"]

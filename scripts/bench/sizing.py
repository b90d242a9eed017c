"""What the preflight says of a worker's memory and a candidate's time, against what one takes. Linux only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import ROOT
from bench.synthetic import Size, make_models, recipe_data

from evolve.machine import CORE, CORE_WITH_MATRIX_UNIT, this_machine
from evolve.sizing import ModelSize, Workload, duration, need
from fitness.batching import ModelFacts

_SOURCES = 2
_WORDS = 200
_CHILD = "import json, sys; from bench.sizing import measure; measure(**json.loads(sys.argv[1]))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement: all texts have as many tokens, and all answers."""

    size: Size
    method: str
    texts: int
    prompt_tokens: int = 128
    answer_tokens: int = 16


def table(folder: Path, cases: Sequence[Case], threads: int) -> Iterator[str]:
    """Rows of predicted and measured memory (GB) and processor seconds of a candidate."""
    yield "parameters  method            texts   memory: said  measured   seconds: said  measured"
    core = CORE_WITH_MATRIX_UNIT if this_machine().matrix_unit else CORE
    for case in cases:
        models = make_models(folder, case.size, _SOURCES)
        for model in models:
            _write_tokenizer(model)
        _write_task(folder / "tasks", case)
        model_size, work = _model_size(case, models), _workload(case)
        said = need(
            model_size, work, backend="transformers", on_gpu=False, memory_bytes=2**40, rows=case.texts
        )
        said_s = duration(model_size, work, case.texts, core).total_s  # of one core, as processor seconds are
        found = _measured(folder, case, models, threads)
        yield (
            f"{case.size.parameters / 1e9:>9.2f}B  {case.method:<16}{case.texts:>7}"
            f"{said.device_bytes / 1e9:>15.2f}{found['memory_bytes'] / 1e9:>10.2f}"
            f"{said_s:>16.2f}{found['cpu_s']:>10.2f}"
        )


def measure(models: list[str], tasks: str, method: str, texts: int, threads: int) -> None:
    """Prints the peak of a worker's own memory, and processor seconds of a candidate, as JSON."""
    import time

    from bench.memory import OwnMemoryPeak

    from evolve.evaluator import WorkerContext
    from evolve.evaluator_spec import EvaluatorSpec
    from fitness.suite import SuiteSpec, TaskSpec

    folders = [Path(model) for model in models]
    suite = SuiteSpec(tasks=(TaskSpec(name="bench", metric="exact_match,none"),), search_paths=(tasks,))
    spec = EvaluatorSpec(
        model=models[0],
        suite=suite,
        dtype="bfloat16",
        seed=0,
        probe=recipe_data(method, folders),
        batch_size=texts,
    )
    evaluator = spec(WorkerContext(name="bench", threads=threads, device="cpu", memory_share=1.0, logs=None))
    with OwnMemoryPeak() as peak:
        evaluator.prepare()
        started_s = time.process_time()
        evaluator.evaluate(recipe_data(method, folders, 1), "search")
        cpu_s = time.process_time() - started_s
    held_bytes = peak.held_bytes + peak.above_mib * 2**20
    print(json.dumps({"memory_bytes": held_bytes, "cpu_s": cpu_s}))


def _measured(folder: Path, case: Case, models: Sequence[Path], threads: int) -> dict[str, float]:
    given = {
        "models": list(map(str, models)),
        "tasks": str(folder / "tasks"),
        "method": case.method,
        "texts": case.texts,
        "threads": threads,
    }
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", _CHILD, json.dumps(given)]
    said = subprocess.run(
        command, env=environment | {"HF_HUB_OFFLINE": "1"}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    result: dict[str, float] = json.loads(said.splitlines()[-1])
    return result


def _model_size(case: Case, models: Sequence[Path]) -> ModelSize:
    config, parameters = case.size.config(), case.size.parameters
    facts = ModelFacts.from_config(config, weight_bytes=2)
    embeddings = facts.vocab_size * facts.hidden_size
    return ModelSize(
        parameters=parameters,
        embeddings=embeddings,
        largest=embeddings,
        held=parameters,
        sources=len(models),
        source_bytes=2 * parameters * len(models),
        facts=facts,
    )


def _workload(case: Case) -> Workload:
    return Workload(
        texts=case.texts,
        prompt_tokens=case.prompt_tokens,
        answer_tokens=case.answer_tokens,
        longest_tokens=case.prompt_tokens + case.answer_tokens,
    )


def _write_tokenizer(model: Path) -> None:
    """One token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *(f"w{number}" for number in range(_WORDS))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    ).save_pretrained(model)


def _write_task(folder: Path, case: Case) -> None:
    """Texts of random words; answers never end of themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        [f"w{(31 * text + 7 * place * place) % _WORDS}" for place in range(case.prompt_tokens)]
        for text in range(case.texts)
    ]
    rows = [json.dumps({"text": " ".join(row), "gold": "w1"}) for row in words]
    (folder / "bench.jsonl").write_text("\n".join(rows) + "\n")
    task = {
        "task": "bench",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / "bench.jsonl").absolute())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{gold}}",
        "generation_kwargs": {"until": ["@@"], "max_gen_toks": case.answer_tokens, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "bench.yaml").write_text(json.dumps(task))

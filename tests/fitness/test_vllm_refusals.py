"""What cannot be scored by a resident vLLM engine is refused by name, before anything long is started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fitness.errors import ModelError, StreamError
from fitness.vllm_check import check_reload
from fitness.vllm_memory import Need, check_gpu, cpu_cache_bytes
from fitness.vllm_settings import VllmSettings
from fitness.vllm_support import quantisation_refusal

GIB = 2**30


class FakeEngine:
    """Answers with what it was loaded with last; ``faulty`` says how it spoils that."""

    def __init__(self, faulty: str = "") -> None:
        self._faulty = faulty
        self._loads = 0
        self._held = 1.0
        self.longest_tokens = 0

    def load(self, stream: Iterable[tuple[str, Any]]) -> None:
        self._loads += 1
        total = sum(float(tensor.abs().sum()) for _, tensor in stream)
        if self._faulty != "keeps its weights":
            self._held = float(total > 0) + 0.1 * self._loads * (self._faulty == "wears out")

    def generate(self, requests: list[Any], stop_ids: list[Any]) -> list[list[float]]:
        self._note(len(request.prompt) + request.max_new_tokens for request in requests)
        return [[self._held]] * len(requests)

    def likelihoods(self, windows: list[Any]) -> list[float]:
        self._note(len(window.prefix) + len(window.target) for window in windows)
        return [self._held] * len(windows)

    def _note(self, lengths: Iterable[int]) -> None:
        self.longest_tokens = max(self.longest_tokens, *lengths)


def check(faulty: str, folder: Path, longest_tokens: int = 20) -> FakeEngine:
    engine = FakeEngine(faulty)
    check_reload(
        engine,  # type: ignore[arg-type]
        folder,
        architecture="TinyForCausalLM",
        vocab_size=32,
        longest_tokens=longest_tokens,
    )
    return engine


def test_an_engine_that_takes_weights_passes(model_folder: Path) -> None:
    check("", model_folder)


@pytest.mark.parametrize("tokens", [2, 7, 13, 20, 4096])
def test_the_check_asks_no_longer_texts_than_the_suite(tokens: int, model_folder: Path) -> None:
    assert check("", model_folder, tokens).longest_tokens == min(tokens, 20)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (
            "keeps its weights",
            r"vLLM keeps the weights of .*/a \(TinyForCausalLM\) when it is given others: ",
        ),
        (
            "wears out",
            r"weights of .*/a \(TinyForCausalLM\) again: reloading this architecture is not safe: ",
        ),
    ],
)
def test_an_engine_that_does_not_is_refused_with_the_way_out(
    faulty: str, message: str, model_folder: Path
) -> None:
    with pytest.raises(ModelError, match=f"{message}score it with --on-disk, or without --vllm"):
        check(faulty, model_folder)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"compression_config": {"format": "pack-quantized"}}, "compression_config"),
    ],
)
def test_quantised_models_are_refused_by_the_name_of_the_format(config: dict[str, Any], name: str) -> None:
    refusal = quantisation_refusal({"model_type": "llama", **config})
    assert refusal == f"its weights are quantised ({name}): vLLM packs them once and cannot be given others"


def test_models_that_are_not_quantised_are_not_refused() -> None:
    assert quantisation_refusal({"model_type": "llama", "quantization_config": None}) is None


def test_settings_that_the_search_decides_are_refused() -> None:
    with pytest.raises(ValueError, match="decides itself: model, seed"):
        VllmSettings(engine={"seed": 3, "model": "x"})
    with pytest.raises(ValueError, match="decides itself: pipeline_parallel_size"):
        VllmSettings(engine={"pipeline_parallel_size": 2})
    with pytest.raises(ValueError, match=r"set outside vllm.engine: vllm.tensor_parallel_size"):
        VllmSettings(engine={"tensor_parallel_size": 2})
    with pytest.raises(ValueError, match=r"gpu_memory_utilization is 1.5"):
        VllmSettings(gpu_memory_utilization=1.5)


NEED = Need(weights=4 * GIB, swap=2 * GIB, merge=3 * GIB, sequence=GIB // 8, sequences=15)


def test_what_a_model_needs_follows_from_its_tensors_and_its_config() -> None:
    config = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 32}
    shapes = {"embed": (32, 8), "norm": (8,)}
    settings = VllmSettings(tensor_parallel_size=2, max_num_seqs=5)
    need = Need.of(shapes, config, settings, weight_bytes=2, longest_tokens=128, merge_bytes=7)
    cache = 2 * 3 * 8 * 2 * 256  # keys and values, layers, their size, bytes, tokens in whole blocks
    assert need == Need(weights=264, swap=6 * 512, merge=7, sequence=cache // 2, sequences=5)


def test_without_a_gpu_the_cache_takes_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    settings = VllmSettings()
    assert cpu_cache_bytes(NEED, settings, None) == 2 * GIB
    assert cpu_cache_bytes(NEED, settings, 100 * GIB) == 2 * GIB
    assert cpu_cache_bytes(NEED, settings, 11 * GIB) == GIB
    assert cpu_cache_bytes(NEED, replace(settings, tensor_parallel_size=2), 22 * GIB) == GIB
    with pytest.raises(
        ModelError,
        match=r"do not fit: weights 4 GiB, taking and merging new ones 5 GiB, vLLM itself 1 GiB, keys and "
        r"values of one sequence 0.25 GiB; there are 10 GiB for each worker of an engine. Use a smaller "
        r"vllm.max_model_len, or fewer workers \(--num-workers\)",
    ):
        cpu_cache_bytes(NEED, settings, 10 * GIB)


def test_a_cache_of_a_given_size_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    settings = VllmSettings(engine={"kv_cache_memory_bytes": 3 * GIB})
    assert cpu_cache_bytes(NEED, settings, 14 * GIB) == 3 * GIB
    with pytest.raises(ModelError, match=r"Use a smaller vllm.engine.kv_cache_memory_bytes, or"):
        cpu_cache_bytes(NEED, settings, 12 * GIB)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    with pytest.raises(
        ModelError, match=r"\(VLLM_CPU_KVCACHE_SPACE\) 4 GiB; .* a smaller VLLM_CPU_KVCACHE_SPACE"
    ):
        cpu_cache_bytes(NEED, settings, 13 * GIB)


@pytest.mark.parametrize(
    ("share", "total", "message"),
    [
        (
            0.2,
            20,
            r"weights 4 GiB, .* there are 4 GiB .* a larger vllm.gpu_memory_utilization \(it is 0.2 of 20",
        ),
        (
            0.8,
            20,
            r"new weights 5 GiB, .* there are 4 GiB .* a smaller vllm.gpu_memory_utilization \(it is 0.8 of",
        ),
        (0.5, 8, r"there are 8 GiB .* Use a larger vllm.tensor_parallel_size"),
    ],
)
def test_a_gpu_that_is_too_small_is_refused_with_the_setting_to_change(
    share: float, total: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_gpu(NEED, VllmSettings(gpu_memory_utilization=share), total * GIB, total * GIB)


def test_workers_that_share_a_gpu_have_their_part_for_merging() -> None:
    settings = VllmSettings(gpu_memory_utilization=0.4)
    check_gpu(NEED, settings, 20 * GIB, 20 * GIB)
    with pytest.raises(ModelError, match=r"new weights 5 GiB, .* there are 2 GiB .* a smaller vllm.gpu"):
        check_gpu(NEED, settings, 30 * GIB, 14 * GIB)


def test_a_gpu_that_holds_both_is_fine() -> None:
    check_gpu(NEED, VllmSettings(gpu_memory_utilization=0.5), 20 * GIB, 20 * GIB)


def test_an_error_is_sent_to_another_process_with_its_traceback() -> None:
    import pickle

    from fitness.vllm_worker import Arrived

    class Odd(Exception):
        """One that only its own process can build."""

        def __init__(self, left: int, right: int) -> None:
            super().__init__(f"{left} and {right}")

    try:
        raise Odd(1, 2)
    except Odd as error:
        arrived = Arrived(problems=(), error=error)
    with pytest.raises(Odd, match="1 and 2"):
        arrived.check()
    with pytest.raises(
        StreamError, match=r"^Odd: 1 and 2\nin a worker of the engine:\nTraceback (.|\n)*raise Odd"
    ):
        pickle.loads(pickle.dumps(arrived)).check()
    with pytest.raises(ModelError, match=r"do not fit the model in vLLM:\nx: came twice"):
        pickle.loads(pickle.dumps(Arrived(problems=("x: came twice",), error=None))).check()

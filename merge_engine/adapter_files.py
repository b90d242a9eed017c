"""A LoRA adapter as PEFT saves it: which tensors of a model it changes, and how; read from the headers alone.

LoRA: Hu et al. 2021, arXiv 2106.09685. DoRA: Liu et al. 2024, arXiv 2402.09353.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo, read_json, read_safetensors_header
from merge_engine.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+)\.(?:(?P<a>lora_A\.weight)|(?P<b>lora_B\.weight)|(?P<embedding_a>lora_embedding_A)"
    r"|(?P<embedding_b>lora_embedding_B)|(?P<magnitude>lora_magnitude_vector(?:\.weight)?))"
)
_HEAD = "lm_head.weight"
_ADAPTED_DTYPES = ("BF16", "F16", "F32", "F64")

# What changes the model in ways that low-rank products alone do not say.
_REFUSED_SETTINGS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
)  # fmt: skip
_INITS_THAT_KEEP_THE_MODEL = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """scale * B @ A, added to a weight of shape (out, in), or (in, out) if ``transposed``.

    ``a``: (r, in); ``b``: (out, r). ``magnitude``: DoRA's norms of the rows of the sum, (out,).
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool
    embedding: bool
    magnitude: TensorInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one tensor of the model: replaced, a product added to it, or both in turn."""

    replacement: TensorInfo | None
    low_rank: LowRank | None


def open_adapter(folder: Path) -> CheckpointHeader:
    """The adapter's config and the headers of its weights.

    Raises `CheckpointError` where there is no LoRA adapter, or one that cannot be merged.
    """
    config = read_json(folder / CONFIG_FILE, "is this a PEFT adapter folder?")
    _check_config(folder / CONFIG_FILE, config)
    if (folder / WEIGHTS_FILE).is_file():
        tensors = read_safetensors_header(folder / WEIGHTS_FILE)
    elif (folder / PICKLED_FILE).is_file():
        from merge_engine.pickled_header import read_pickled_header

        tensors = read_pickled_header(folder / PICKLED_FILE)
    else:
        raise CheckpointError(f"{folder}: neither {WEIGHTS_FILE} nor {PICKLED_FILE}: no adapter to apply")
    return CheckpointHeader(folder=folder, tensors=tensors, config=config, num_layers=None)


def with_adapter(model: CheckpointHeader, adapter: CheckpointHeader) -> CheckpointHeader:
    """The header of a model with an adapter. Raises `CheckpointError` where the adapter does not fit."""
    return replace(model, changes=changes(adapter, model), adapter=adapter)


def changes(adapter: CheckpointHeader, model: CheckpointHeader) -> dict[str, Change]:
    """What ``adapter`` does to ``model``, by the name of the model's tensor.

    Raises `CheckpointError` with everything that does not fit: names, shapes, ranks, dtypes.
    """
    problems: list[str] = []
    found: dict[str, Change] = {}
    for name, parts in _by_tensor(adapter, model, problems).items():
        try:
            found[name] = _change(name, parts, adapter.config, model.tensors[name])
        except CheckpointError as error:
            problems.append(str(error))
    if not problems and not any(change.low_rank for change in found.values()):
        problems.append("it holds no LoRA weights")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{adapter.folder}: this adapter does not fit the model {model.folder}: "
            f"{'; '.join(problems[:5])}{more} (name the model that it was trained on)"
        )
    return found


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: peft_type is {kind!r}; only LORA adapters can be merged")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{file}: bias is {config['bias']!r}; only 'none' can be merged")
    refused = [name for name in _REFUSED_SETTINGS if config.get(name)]
    if refused:
        raise CheckpointError(f"{file}: adapters with {', '.join(refused)} cannot be merged")
    init = config.get("init_lora_weights")
    if init not in _INITS_THAT_KEEP_THE_MODEL:
        raise CheckpointError(
            f"{file}: init_lora_weights is {init!r}, which changes the model's own weights; convert the "
            "adapter with peft: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )


def _by_tensor(
    adapter: CheckpointHeader, model: CheckpointHeader, problems: list[str]
) -> Mapping[str, Mapping[str, TensorInfo]]:
    """The adapter's tensors by the model's tensor that they change, and what each is (a group of `_PART`)."""
    found: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    saved = adapter.config.get("modules_to_save") or ()
    for key, info in adapter.tensors.items():
        match = _PART.fullmatch(key.removeprefix(_PREFIX))
        name = (
            f"{match['module']}.weight" if match else key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        )
        if name == _HEAD and _is_tied(model):
            # peft adds a copy of the embeddings unasked; anything else would be lost.
            if match or "lm_head" in saved:
                problems.append(f"{key} changes an output head that is tied to the embeddings")
        elif not key.startswith(_PREFIX) or name not in model.tensors:
            problems.append(f"{key} matches no tensor of it")
        else:
            found[name][str(match.lastgroup) if match else "replacement"] = info
    return found


def _is_tied(model: CheckpointHeader) -> bool:
    return bool(model.config.get("tie_word_embeddings")) or _HEAD not in model.tensors


def _change(
    name: str, parts: Mapping[str, TensorInfo], config: Mapping[str, Any], changed: TensorInfo
) -> Change:
    if changed.dtype not in _ADAPTED_DTYPES:
        raise CheckpointError(f"{name} is {changed.dtype}; only {', '.join(_ADAPTED_DTYPES)} can be adapted")
    replacement = parts.get("replacement")
    if replacement is not None and replacement.shape != changed.shape:
        raise CheckpointError(f"{name} is {list(changed.shape)}, its replacement {list(replacement.shape)}")
    if replacement is not None and len(parts) == 1:
        return Change(replacement=replacement, low_rank=None)
    low_rank = _low_rank(name.removesuffix(".weight"), parts, config, changed.shape)
    return Change(replacement=replacement, low_rank=low_rank)


def _low_rank(
    module: str, parts: Mapping[str, TensorInfo], config: Mapping[str, Any], shape: tuple[int, ...]
) -> LowRank:
    embedding = "embedding_a" in parts or "embedding_b" in parts
    a, b = (parts.get(f"embedding_{part}" if embedding else part) for part in "ab")
    if a is None or b is None:
        raise CheckpointError(f"{module} has only one of its two LoRA matrices")
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise CheckpointError(f"{module} is no linear layer or embedding")
    rank = _setting(module, config, "r", "rank_pattern")
    if not a.shape[0] == b.shape[1] == rank:
        ranks = f"{a.shape[0]} and {b.shape[1]}"
        raise CheckpointError(f"{module} has LoRA matrices of rank {ranks}, {CONFIG_FILE} says {rank:g}")
    product = (b.shape[0], a.shape[1])
    transposed = embedding or (bool(config.get("fan_in_fan_out")) and product[::-1] == shape)
    if (product[::-1] if transposed else product) != shape:
        raise CheckpointError(f"{module} is {list(shape)}, its LoRA product {list(product)}")
    alpha = _setting(module, config, "lora_alpha", "alpha_pattern")
    return LowRank(
        a=a,
        b=b,
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        transposed=transposed,
        embedding=embedding,
        magnitude=_magnitude(module, parts, config, product[0], embedding),
    )


def _magnitude(
    module: str, parts: Mapping[str, TensorInfo], config: Mapping[str, Any], rows: int, embedding: bool
) -> TensorInfo | None:
    magnitude = parts.get("magnitude")
    if (magnitude is not None) != bool(config.get("use_dora")):
        raise CheckpointError(f"{module}: use_dora in {CONFIG_FILE} and the weights do not agree")
    if magnitude is not None and (embedding or magnitude.elements != rows):
        what = "DoRA of embeddings cannot be merged" if embedding else "the magnitude vector does not fit"
        raise CheckpointError(f"{module}: {what}")
    return magnitude


def _setting(module: str, config: Mapping[str, Any], name: str, pattern_name: str) -> float:
    """The rank or alpha of a module: that of the first pattern that matches the end of its name."""
    patterns = config.get(pattern_name) or {}
    try:
        matching = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    except (re.error, AttributeError) as error:
        raise CheckpointError(
            f"{pattern_name} in {CONFIG_FILE} is no mapping of patterns: {error}"
        ) from error
    value = matching[0] if matching else config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{module}: {name} in {CONFIG_FILE} is {value!r}, expected a positive number")
    return float(value)

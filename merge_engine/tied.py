"""Output heads tied to the embeddings: merged and written once, unless other models have their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from merge_engine.checkpoint_header import CheckpointHeader, TensorInfo
from merge_engine.errors import CheckpointError

_SAMPLES = 32
_SAMPLE_BYTES = 4096


def repeated_names(header: CheckpointHeader) -> frozenset[str]:
    """Names that the model itself fills from another tensor, and whose content is that tensor's.

    That content is compared in 32 evenly spaced blocks of 4 KiB: a head that differs from the embeddings is
    kept, whatever the config says (transformers does not tie it either). Whether a config that is silent
    means tied weights is asked of transformers, and only where the checkpoint holds such a pair.
    """
    pairs = [pair for pair in _pairs(header) if _same_content(*(header.tensors[name] for name in pair))]
    if not pairs:
        return frozenset()
    return frozenset(repeat for _, repeat in pairs) if _is_tied(header.config) else frozenset()


def missing_heads(header: CheckpointHeader, others: Iterable[CheckpointHeader]) -> dict[str, str]:
    """The output heads that ``others`` have beside their embeddings, and a model with tied weights has not.

    Each with the name of the embeddings, which are its head.
    """
    heads = {head: embeddings for other in others for embeddings, head in _pairs(other)}
    own = repeated_names(header)
    found = {
        head: embeddings
        for head, embeddings in heads.items()
        if embeddings in header.tensors and (head not in header.tensors or head in own)
    }
    return found if found and _is_tied(header.config) else {}


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model that has got an output head of its own."""
    untied = {**config, "tie_word_embeddings": False}
    for part in ("text_config", "decoder"):
        if isinstance(config.get(part), dict) and "tie_word_embeddings" in config[part]:
            untied[part] = {**config[part], "tie_word_embeddings": False}
    return untied


def _pairs(header: CheckpointHeader) -> Iterator[tuple[str, str]]:
    """(kept, repeat): matrices outside the layers, of the vocabulary's size, and equal in shape and dtype."""
    first: dict[tuple[object, ...], str] = {}
    for name in sorted(header.tensors, key=_embeddings_first):
        info = header.tensors[name]
        if len(info.shape) != 2 or not _is_outer(name):
            continue
        kind = (info.dtype, info.shape)
        if kind in first:
            yield first[kind], name
        first.setdefault(kind, name)


def _is_outer(name: str) -> bool:
    """Whether it is a matrix of token embeddings or an output head."""
    module = name.removesuffix(".weight")
    return not any(part.isdigit() for part in module.split(".")) and module.endswith(
        ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings", "embeddings", "embed_in",
         "embed_out", "predictions.decoder", "tok_embeddings", "output_projection", "embedding", "output",
         "lm_head.decoder")
    )  # fmt: skip


def _embeddings_first(name: str) -> tuple[bool, bool, str]:
    return "shared" not in name, "emb" not in name and "wte" not in name, name


def _is_tied(config: Mapping[str, Any]) -> bool:
    said = _says(config)
    return _default(config) if said is None else said


def _says(config: Mapping[str, Any]) -> bool | None:
    """What the config states; the outer one counts, then that of the language model."""
    for node in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(node, dict) and isinstance(node.get("tie_word_embeddings"), bool):
            return bool(node["tie_word_embeddings"])
    return None


def _default(config: Mapping[str, Any]) -> bool:
    """Whether models of that type tie by default; False for types that transformers does not know."""
    from transformers import AutoConfig

    try:
        made = AutoConfig.for_model(config.get("model_type"))
        return bool(getattr(made.get_text_config(), "tie_word_embeddings", False))
    except (
        Exception
    ):  # of a class that needs more than its type: then both tensors are kept, which is right too
        return False


def _same_content(a: TensorInfo, b: TensorInfo) -> bool:
    if (a.file, a.begin) == (b.file, b.begin):
        return True
    size = a.end - a.begin
    step = max(_SAMPLE_BYTES, size // _SAMPLES)
    try:
        with a.file.open("rb") as first, b.file.open("rb") as second:
            for start in range(0, size, step):
                length = min(_SAMPLE_BYTES, size - start)
                first.seek(a.begin + start)
                second.seek(b.begin + start)
                if first.read(length) != second.read(length):
                    return False
    except OSError as error:
        raise CheckpointError(f"{a.file}: cannot be read: {error.strerror or error}") from error
    return True

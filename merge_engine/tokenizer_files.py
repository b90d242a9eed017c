"""The tokenizer files of a merged model, and its configs brought to its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merge_engine.checkpoint_header import CheckpointHeader
from merge_engine.errors import CheckpointError
from merge_engine.new_folder import copy_files
from merge_engine.sources import resolve
from merge_engine.synced_files import write_json, write_text
from merge_engine.vocabulary.alignment import Alignment
from merge_engine.vocabulary.chat_templates import FILE as CHAT_TEMPLATE_FILE
from merge_engine.vocabulary.extension import extended
from merge_engine.vocabulary.token_ids import renumbered, renumbering, with_rows
from merge_engine.vocabulary.tokens import (
    CONFIG_FILE,
    SLOW_FILES,
    TOKENIZER_FILE,
    json_of,
    read_vocabulary,
)

_TEMPLATE_FILES = (CHAT_TEMPLATE_FILE, "chat_template.json")
TOKENIZER_FILES = (TOKENIZER_FILE, CONFIG_FILE, "special_tokens_map.json", *SLOW_FILES, *_TEMPLATE_FILES)
HeaderOf = Callable[[str], CheckpointHeader]
Config = Mapping[str, Any]


def write_tokenizer(alignment: Alignment, template: str | None, header_of: HeaderOf, out: Path) -> None:
    """Write the tokenizer of the result into the folder ``out``: that of a model, with its new tokens.

    ``template``: the chat template in place of the tokenizer's own, if not None. Raises `CheckpointError`.
    """
    folder = _folder(alignment.tokenizer, header_of)
    left_out = set(_TEMPLATE_FILES) if template is not None else set()
    if alignment.new:
        left_out |= {TOKENIZER_FILE, CONFIG_FILE, *SLOW_FILES}  # the slow ones have fewer tokens
        _write_extended(alignment, folder, header_of, out)
    copy_files(folder, out, [name for name in TOKENIZER_FILES if name not in left_out])
    if template is not None:
        write_text(out / CHAT_TEMPLATE_FILE, template)


def config_aligner(
    alignment: Alignment, source: str, header_of: HeaderOf
) -> Callable[[Config], dict[str, Any]]:
    """What turns configs of the model ``source`` into those of the result: token numbers, ``vocab_size``.

    For config.json and generation_config.json (which has no ``vocab_size``). Raises `CheckpointError`.
    """
    rows = alignment.rows
    if rows is None:
        return dict
    if alignment.tokenizer == source:  # its tokens keep their numbers
        return lambda config: with_rows(config, rows) if "model_type" in config else dict(config)
    owner_folder = _folder(alignment.tokenizer, header_of)
    renumber = renumbering(
        alignment, read_vocabulary(owner_folder), read_vocabulary(header_of(source).folder)
    )
    try:
        instead = header_of(alignment.tokenizer).config
    except CheckpointError:  # a folder with nothing but a tokenizer
        instead = {}

    def aligned(config: Config) -> dict[str, Any]:
        changed = renumbered(config, renumber, instead)
        return with_rows(changed, rows) if "model_type" in config else changed

    return aligned


def _folder(reference: str, header_of: HeaderOf) -> Path:
    """The folder of a model; one that is not merged need not hold more than a tokenizer."""
    try:
        return header_of(reference).folder
    except CheckpointError:
        return resolve(reference)


def _write_extended(alignment: Alignment, folder: Path, header_of: HeaderOf, out: Path) -> None:
    names = dict.fromkeys(token.model for token in alignment.new if token.model is not None)
    files = {model: _folder(model, header_of) / TOKENIZER_FILE for model in names}
    donors = {model: json_of(file) for model, file in files.items()}
    try:
        data = extended(json_of(folder / TOKENIZER_FILE), alignment.new, alignment.first_new, donors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        among = ", ".join(map(str, (folder / TOKENIZER_FILE, *files.values())))
        raise CheckpointError(f"one of {among} is no tokenizer that can be joined: {error!r}") from error
    write_json(out / TOKENIZER_FILE, data)
    if (folder / CONFIG_FILE).is_file():
        write_json(out / CONFIG_FILE, _with_added(json_of(folder / CONFIG_FILE), data, alignment))


def _with_added(config: dict[str, Any], data: Mapping[str, Any], alignment: Alignment) -> dict[str, Any]:
    """tokenizer_config.json with the new added tokens, where it lists them too."""
    if not isinstance(config.get("added_tokens_decoder"), dict):
        return config
    entries = {
        str(entry["id"]): {name: value for name, value in entry.items() if name != "id"}
        for entry in data["added_tokens"]
        if entry["id"] >= alignment.first_new
    }
    return config | {"added_tokens_decoder": {**config["added_tokens_decoder"], **entries}}

"""From the name of a source model, as a recipe writes it, to its folder."""

from __future__ import annotations

from pathlib import Path

from merge_engine.adapter_files import open_adapter, with_adapter
from merge_engine.checkpoint_header import CheckpointHeader, open_header
from merge_engine.errors import CheckpointError

WANTED_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
)
PICKLED_FILES = ("pytorch_model*.bin", "adapter_model.bin")  # fetched only where there is nothing better


def open_source(reference: str) -> CheckpointHeader:
    """The header of a source model, of ``model+adapter`` with what the adapter changes.

    Raises `CheckpointError` where there is no such model, or the adapter does not fit it.
    """
    model, adapter = _parts(reference)
    header = open_header(_folder(model))
    return header if adapter is None else with_adapter(header, open_adapter(_folder(adapter)))


def resolve(reference: str) -> Path:
    """The folder with the config and the tokenizer of a source; of ``model+adapter``, that of the model.

    ``reference`` is a local folder, taken as it is, or a hub id with an optional revision
    (``org/name@revision``), fetched through `huggingface_hub` into its cache, or ``model+adapter``, both
    named so. Raises `CheckpointError` where there is no such model.
    """
    return _folder(_parts(reference)[0])


def _parts(reference: str) -> tuple[str, str | None]:
    """The model, and the adapter where one is named. A folder may have a '+' in its name."""
    if "+" not in reference or Path(reference).is_dir():
        return reference, None
    model, _, adapter = reference.partition("+")
    if not model or not adapter or "+" in adapter:
        raise CheckpointError(f"{reference}: expected model+adapter, with '+' in neither's name")
    return model, adapter


def _folder(reference: str) -> Path:
    if Path(reference).is_dir():
        return Path(reference)
    if Path(reference).is_absolute() or reference.startswith((".", "~")) or reference.count("/") > 1:
        raise CheckpointError(f"{reference}: no such folder")
    return _from_hub(reference)


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        wanted = list(WANTED_FILES)
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=[*wanted, *PICKLED_FILES])
        )
    except HFValidationError as error:
        raise CheckpointError(f"{reference}: neither a folder nor a hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{reference}: no such folder, and not in the hub cache while the hub cannot be reached "
            "(offline?); give a folder, or download it first"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{reference}: no such folder, and the hub did not give it: {error}") from error

"""From the name of a source model, as a recipe writes it, to its folder."""

from __future__ import annotations

from pathlib import Path

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


def resolve(reference: str) -> Path:
    """The folder of a source model.

    ``reference`` is a local folder, taken as it is, or a hub id with an optional revision
    (``org/name@revision``), fetched through `huggingface_hub` into its cache, or ``model+adapter``, both
    named so: then the folder is one in our own cache, written at the first call. Raises `CheckpointError`
    where there is no such model.
    """
    if Path(reference).is_dir():
        return Path(reference)
    if "+" in reference:
        return _with_adapter(reference)
    if Path(reference).is_absolute() or reference.startswith((".", "~")) or reference.count("/") > 1:
        raise CheckpointError(f"{reference}: no such folder")
    return _from_hub(reference)


def _with_adapter(reference: str) -> Path:
    model, _, adapter = reference.partition("+")
    if not model or not adapter or "+" in adapter:
        raise CheckpointError(f"{reference}: expected model+adapter, with '+' in neither's name")
    from merge_engine.adapters import merged_folder

    return merged_folder(resolve(model), resolve(adapter))


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(WANTED_FILES)))
    except HFValidationError as error:
        raise CheckpointError(f"{reference}: neither a folder nor a hub id: {error}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{reference}: no such folder, and not in the hub cache while the hub cannot be reached "
            "(offline?); give a folder, or download it first"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{reference}: no such folder, and the hub did not give it: {error}") from error

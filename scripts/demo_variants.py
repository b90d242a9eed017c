"""Makes an adapter and a model of another vocabulary from the demo models: `python scripts/demo_variants.py`.

configs/merge/lora.yml and configs/merge/tokenizer_*.yml merge them. A second, once the demo models are there.
"""

import argparse
from pathlib import Path

from demo_variants.build import build_variants


def main() -> None:
    """Reads the command line and writes both into the demo folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", nargs="?", type=Path, default=Path(".cache/demo"), help="the demo folder")
    build_variants(parser.parse_args().demo)


if __name__ == "__main__":
    main()

"""Trains the demo's base and three experts, writes their tasks: `python scripts/demo_models.py [OUT]`.

2 to 3 minutes of two cores the first time; a folder that is complete is left as it is.
"""

import argparse
from functools import partial
from pathlib import Path

from demo_models.build import Settings, build


def main() -> None:
    """Reads the command line and builds the demo folder."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=Path(".cache/demo"), help="folder to fill")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=defaults.threads, help="other counts, other rounding")
    parser.add_argument("--steps-share", type=float, default=defaults.steps_share, help="1: as the demo")
    parser.add_argument("--jobs", type=int, default=3, help="experts trained at once")
    given = parser.parse_args()
    settings = Settings(seed=given.seed, threads=given.threads, steps_share=given.steps_share)
    build(given.out, settings, jobs=given.jobs, say=partial(print, flush=True))


if __name__ == "__main__":
    main()

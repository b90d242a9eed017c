"""A Ray cluster of several machines on this one, in a process of its own, as Ray leaves files open.

`python -m tests.fault.machines` prints the address; then it adds a machine of one core for each line `add` it
reads, and takes away the machine that was added first for each line `remove`; it answers `done`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class Machines:
    """The side of the tests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._count = 0
        self.address = self._answer("address")

    def become(self, count: int) -> None:
        """Add or remove machines until there are so many."""
        while self._count < count:
            self.add()
        while self._count > count:
            self.remove()

    def add(self) -> None:
        self._command("add")
        self._count += 1

    def remove(self) -> None:
        """The machine that was added first vanishes with all that runs on it."""
        self._command("remove")
        self._count -= 1

    def _command(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        self._answer("done")

    def _answer(self, first: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:  # Ray prints lines of its own
            word, _, rest = line.strip().partition(" ")
            if word == first:
                return rest
        raise AssertionError("the cluster's process has ended")


@contextmanager
def machines() -> Iterator[Machines]:
    """A head without cores; machines of one core are to be added."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fault.machines"],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Machines(process)


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    print("address", cluster.address, flush=True)
    nodes = []
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

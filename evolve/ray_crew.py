"""The workers of a fleet, on whatever machines the cluster has at the time."""

from __future__ import annotations

from collections import Counter

from evolve.evaluator import EvaluatorFactory
from evolve.fleet_settings import FleetSettings
from evolve.ray_cluster import alive_nodes, connect, disconnect
from evolve.ray_slot import Slot, start_slot
from evolve.worker_plan import Node, missing_workers, plan_share

START_LIMIT_S = 3600.0


class Crew:
    """Joins or starts the cluster, starts workers and ends them; what they do is the fleet's business.

    ``slots``: one for each worker. ``batch_size``: of workers that are started from now on; None: what fits
    each. ``ours``: whether the cluster was started here, for this crew alone.
    """

    def __init__(self, factory: EvaluatorFactory, settings: FleetSettings) -> None:
        """Workers are started, not waited for.

        Raises:
            FleetError: there is no such cluster, or it has no room for the workers.
        """
        self.slots: list[Slot] = []
        self.batch_size = settings.batch_size
        self._factory = factory
        self._logs = settings.logs
        self._started = 0
        self._unfit: set[str] = set()  # machines on which a worker could not be prepared
        self.ours = connect(settings.address, settings.num_workers)
        try:
            self._share = plan_share(
                alive_nodes(),
                num_workers=settings.num_workers,
                device=settings.device,
                processes_per_worker=settings.processes_per_worker,
                workers_per_gpu=settings.workers_per_gpu,
                worker_bytes=settings.worker_bytes,
            )
            self.start_missing()
        except BaseException:
            self.close()
            raise

    def start_missing(self) -> None:
        """Start workers where there is room for them."""
        nodes = [node for node in alive_nodes() if node.id not in self._unfit]
        present = Counter(slot.node.id for slot in self.slots)
        for node in missing_workers(self._share, nodes, present):
            self.slots.append(self._start(f"worker-{self._started}", node))
            self._started += 1

    def restart(self, slot: Slot) -> None:
        """A new process in the place of this one."""
        slot.kill(on_this_machine=self.ours)
        self.slots[self.slots.index(slot)] = self._start(slot.name, slot.node)

    def give_up(self, slot: Slot) -> None:
        """End a worker that cannot be prepared; its machine gets no other one."""
        slot.kill(on_this_machine=self.ours)
        self._unfit.add(slot.node.id)
        self.slots.remove(slot)

    def remove_absent(self) -> list[Slot]:
        """Those whose machines have left the cluster, which are none of its workers any more."""
        alive = {node.id for node in alive_nodes()}
        absent = [slot for slot in self.slots if slot.node.id not in alive]
        self.slots = [slot for slot in self.slots if slot.node.id in alive]
        return absent

    def close(self) -> None:
        """End all workers, and the cluster if it is ours. May be called twice."""
        slots, self.slots = self.slots, []
        if not self.ours:
            for slot in slots:
                slot.kill(on_this_machine=False)
            return
        self.ours = False
        disconnect()
        for slot in slots:
            slot.kill_process()

    def _start(self, name: str, node: Node) -> Slot:
        return start_slot(
            name,
            node,
            self._share,
            self._factory,
            logs=self._logs,
            batch_size=self.batch_size,
            limit_s=START_LIMIT_S,
        )

"""How the machines of a cluster are shared out among workers."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace

import pytest

from evolve.errors import FleetError
from evolve.ray_cluster import connect
from evolve.worker_plan import Node, Share, missing_workers, plan_share, threads_per_worker


def _nodes(*cores_and_gpus: tuple[int, int]) -> list[Node]:
    return [
        Node(id=str(i), host=f"host{i}", cores=cores, gpus=gpus)
        for i, (cores, gpus) in enumerate(cores_and_gpus)
    ]


@pytest.mark.parametrize(
    ("cores", "workers", "threads"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([16], 3, 5),
        ([8, 8], 3, 4),  # two on one machine, one on the other
        ([8, 2], 2, 4),
        ([8, 2], 5, 2),
        ([1, 1, 1], 3, 1),
    ],
)
def test_workers_get_equal_shares_of_cores_and_none_straddles_machines(
    cores: list[int], workers: int, threads: int
) -> None:
    assert threads_per_worker(cores, workers) == threads


@pytest.mark.parametrize(("cores", "workers"), [([2], 3), ([0], 1), ([], 1)])
def test_more_workers_than_cores_are_refused(cores: list[int], workers: int) -> None:
    with pytest.raises(FleetError, match=rf"{workers} workers do not fit on {sum(cores)} cores"):
        threads_per_worker(cores, workers)


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "fitting"),
    [
        ([(2, 0)], None, 1, [2]),
        ([(16, 0)], None, 2, [8]),
        ([(64, 0), (16, 0)], None, 8, [8, 2]),
        ([(16, 0)], 12, 1, [16]),
        ([(16, 2), (8, 1)], None, 8, [2, 1]),
        ([(16, 2), (8, 1)], 2, 12, [2, 1]),
    ],
)
def test_every_worker_gets_the_same_share(
    machines: list[tuple[int, int]], workers: int | None, threads: int, fitting: list[int]
) -> None:
    nodes = _nodes(*machines)
    share = plan_share(nodes, num_workers=workers, device=None)
    assert share.threads == threads
    assert [share.fitting(node) for node in nodes] == fitting


def test_a_machine_without_gpus_gets_no_worker_among_some_with() -> None:
    nodes = _nodes((16, 4), (64, 0))
    share = plan_share(nodes, num_workers=None, device=None, processes_per_worker=2)
    assert share.resources == {"num_gpus": 2, "num_cpus": 0}
    assert [node.host for node in missing_workers(share, nodes, {})] == ["host0", "host0"]
    assert plan_share(nodes, num_workers=None, device="cpu").gpus == 0


@pytest.mark.parametrize(("cores", "threads", "workers"), [(8, 2, 4), (2, 2, 1), (1, 1, 1), (64, 8, 8)])
def test_without_gpus_each_process_of_a_worker_has_a_core(cores: int, threads: int, workers: int) -> None:
    nodes = _nodes((cores, 0))
    share = plan_share(nodes, num_workers=None, device=None, processes_per_worker=2)
    assert (share.threads, share.fitting(nodes[0])) == (threads, workers)


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "message"),
    [
        ([(8, 0)], None, "cuda", "the cluster has none"),
        ([(8, 2)], 3, None, "3 workers do not fit on 2 GPUs: each takes 1 of one machine"),
        ([(8, 1), (8, 1)], None, 2, "1 workers do not fit on 2 GPUs: each takes 2 of one machine"),
    ],
)
def test_shares_that_do_not_fit_are_refused(
    machines: list[tuple[int, int]], workers: int | None, gpus: object, message: str
) -> None:
    device = gpus if isinstance(gpus, str) else None
    per_worker = gpus if isinstance(gpus, int) else 1
    with pytest.raises(FleetError, match=message):
        plan_share(_nodes(*machines), num_workers=workers, device=device, processes_per_worker=per_worker)


def test_workers_start_where_most_room_is_and_never_more_than_asked_for() -> None:
    share = Share(threads=1, device="cpu", gpus=0, limit=4)
    nodes = _nodes((2, 0), (4, 0))
    assert [node.host for node in missing_workers(share, nodes, {})] == ["host1", "host1", "host0", "host1"]
    assert [node.host for node in missing_workers(share, nodes, {"1": 3})] == ["host0"]
    assert missing_workers(share, nodes, {"0": 2, "1": 2}) == []
    assert [node.host for node in missing_workers(share, nodes[:1], {})] == ["host0", "host0"]


def test_workers_of_one_machine_share_its_memory() -> None:
    (node,) = _nodes((8, 0))
    assert Share(threads=1, device="cpu", gpus=0, limit=2).memory_share(node) == 0.5
    assert Share(threads=2, device="cpu", gpus=0, limit=None).memory_share(node) == 0.25


def _memory(*gigabytes: float | None) -> list[Node]:
    return [
        Node(
            id=str(i),
            host=f"host{i}",
            cores=8,
            gpus=0,
            memory_bytes=None if size is None else int(size * 1e9),
        )
        for i, size in enumerate(gigabytes)
    ]


def test_there_are_no_more_workers_than_memory_for_them() -> None:
    nodes = _memory(10, 3.5, None, 0.5)
    share = plan_share(nodes, num_workers=None, device=None, worker_bytes=10**9)
    assert [share.fitting(node) for node in nodes] == [8, 3, 8, 0]
    few = _memory(2.5)
    share = plan_share(few, num_workers=None, device=None, worker_bytes=10**9)
    assert (share.threads, share.fitting(few[0]), share.memory_share(few[0])) == (4, 2, 0.5)
    assert len(missing_workers(share, few, {})) == 2


def test_workers_that_memory_is_too_small_for_are_refused_with_what_to_do() -> None:
    with pytest.raises(
        FleetError,
        match=r"4 workers need more memory than there is: each worker needs about "
        r"3 GB; --num-workers 3 fits",
    ):
        plan_share(_memory(10), num_workers=4, device=None, worker_bytes=3 * 10**9)
    with pytest.raises(
        FleetError, match=r"not enough memory: each worker needs about 30 GB, and 10 GB are free"
    ):
        plan_share(_memory(10, 8), num_workers=None, device=None, worker_bytes=30 * 10**9)


def test_several_workers_may_share_a_gpu() -> None:
    nodes = _nodes((16, 2), (8, 1))
    share = plan_share(nodes, num_workers=None, device=None, workers_per_gpu=2)
    assert share.resources == {"num_gpus": 0.5, "num_cpus": 0}
    assert [share.fitting(node) for node in nodes] == [4, 2]
    assert (share.threads, share.memory_share(nodes[0])) == (4, 0.25)
    assert len(missing_workers(share, nodes, {"0": 4})) == 2


def test_workers_that_cannot_share_gpus_are_refused() -> None:
    message = "workers that take 2 GPUs each cannot share them: --workers-per-gpu 1"
    with pytest.raises(FleetError, match=message):
        plan_share(_nodes((8, 4)), num_workers=None, device=None, processes_per_worker=2, workers_per_gpu=2)
    with pytest.raises(FleetError, match="5 workers do not fit on 2 GPUs: 2 share each of one machine"):
        plan_share(_nodes((8, 2)), num_workers=5, device=None, workers_per_gpu=2)


def test_a_cluster_that_is_not_there_is_told_without_waiting_for_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(FleetError, match=rf"no Ray cluster answers at 127.0.0.1:{port}: .*refused"):
        connect(f"127.0.0.1:{port}", None)
    with pytest.raises(FleetError, match=r"no Ray cluster answers at 127\.0\.0\.1:99999"):
        connect("127.0.0.1:99999", None)


def test_a_machine_too_busy_for_ray_to_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**_: object) -> None:
        raise Exception("The current node timed out during startup.")

    ray = SimpleNamespace(is_initialized=lambda: False, init=time_out)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(FleetError, match=r"Ray did not start on this machine: The current node timed out"):
        connect(None, 1)

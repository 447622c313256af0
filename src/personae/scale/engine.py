"""Where work on shards runs: in this process, or on the machines of a Ray cluster."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from personae.people import als

Engine = Literal["local", "ray"]


def each_shard(engine: Engine, work: Callable[..., Any], shards: Iterable[int], *shared: Any) -> Iterator[Any]:
    """``work(shard, *shared)`` of each shard, in the order of the shards.

    Parameters
    ----------
    engine : "local" or "ray"
        One process and all its cores, or one task a shard on the Ray cluster that this process is connected to (else
        that of the environment variable ``RAY_ADDRESS``, else a new one of this machine's cores). All its machines
        must see the same files.
    work : function
        Of a module, not a lambda, and without memory: Ray calls it again elsewhere when its worker dies.
    *shared
        What every call gets; sent to each machine once.

    Raises
    ------
    ImportError
        Ray is not installed.

    Examples
    --------
    >>> list(each_shard("local", pow, range(4), 2))
    [0, 1, 4, 9]
    """
    if engine == "local":
        yield from (work(shard, *shared) for shard in shards)
        return
    if engine != "ray":
        raise ValueError(f'there is no engine "{engine}"; the engines are local and ray')
    ray = connect()
    task = ray.remote(num_cpus=1, max_retries=5)(_on_one_core)
    sent = [ray.put(value) for value in shared]
    waiting: deque[Any] = deque()
    ahead = 4 * int(ray.cluster_resources().get("CPU", 1))  # finished results wait in memory until it is their turn
    for shard in shards:
        waiting.append(task.remote(work, shard, *sent))
        if len(waiting) > ahead:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def connect() -> Any:
    """Ray, connected to the cluster that `each_shard` describes."""
    try:
        import ray
    except ImportError:
        raise ImportError("the engine ray needs Ray: pip install 'personae[scale]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def _on_one_core(work: Callable[..., Any], shard: int, *shared: Any) -> Any:
    als.THREADS = 1
    return work(shard, *shared)

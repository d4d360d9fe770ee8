"""Two real processes that talk to each other over gloo."""

import multiprocessing

from torch import distributed


def in_two_processes(work, folder):
    """What ``work(rank)`` returned in each of two processes: [of rank 0, of rank 1]. ``folder``: for their file."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_process, args=(work, rank, folder / "store", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return [found[0], found[1]]


def _process(work, rank, file, queue):
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    queue.put((rank, work(rank)))
    distributed.barrier()
    distributed.destroy_process_group()

"""The plain PyTorch loop: federated averaging with nothing around it.

    python benchmarks/plain_loop.py WORKLOAD FOLDER PROCESSES THREADS

With two processes each takes half of the sites; they exchange weights through shared memory.
"""

from __future__ import annotations

import sys

import torch
import torch.multiprocessing as mp
from workload import SITES, Workload, load_site, network, tell, train, workload_and_folder


def run_sites(
    part: list[int], workload: Workload, folder: object, threads: int, shared: torch.Tensor, sums: list, barrier: object
) -> None:
    """All rounds of some of the sites; the first process averages."""
    torch.set_num_threads(threads)
    model = network(workload)
    data = [load_site(folder, site) for site in part]  # type: ignore[arg-type]
    flat = torch.nn.utils.parameters_to_vector
    if part[0] == 0:
        shared.copy_(flat(model.parameters()).detach())
    barrier.wait()  # type: ignore[attr-defined]
    if part[0] == 0:
        tell("first_step")
    for number in range(workload.rounds):
        mine = sums[part[0] % len(sums)]
        mine.zero_()
        for site, (images, labels) in zip(part, data, strict=True):
            torch.nn.utils.vector_to_parameters(shared.clone(), model.parameters())
            train(model, images, labels, workload, seed=1000 * number + site)
            mine.add_(flat(model.parameters()).detach(), alpha=1 / SITES)
        barrier.wait()  # type: ignore[attr-defined]
        if part[0] == 0:
            shared.copy_(torch.stack(sums).sum(0) if len(sums) > 1 else sums[0])
            tell("round")
        barrier.wait()  # type: ignore[attr-defined]


def main() -> None:
    """Starts one process here and the others beside it."""
    workload, folder = workload_and_folder()
    processes, threads = int(sys.argv[3]), int(sys.argv[4])
    size = sum(p.numel() for p in network(workload).parameters())
    shared = torch.zeros(size).share_memory_()
    sums = [torch.zeros(size).share_memory_() for _ in range(processes)]
    barrier = mp.get_context("fork").Barrier(processes)
    parts = [list(range(SITES))[i::processes] for i in range(processes)]
    arguments = (workload, folder, threads, shared, sums, barrier)
    torch.set_num_threads(threads)
    others = [mp.get_context("fork").Process(target=run_sites, args=(part, *arguments)) for part in parts[1:]]
    for other in others:
        other.start()
    run_sites(parts[0], *arguments)
    for other in others:
        other.join()


if __name__ == "__main__":
    main()

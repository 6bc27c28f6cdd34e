"""How fast is every 3D network on a GPU, and how much memory does a training step take: fp32, bf16, compiled?

    python benchmarks/gpu.py [--size 96] [--steps 10] [--only NAME] [--modes fp32,bf16,compiled]

One whole training step at a time (forward, loss, backward, optimiser; of a GAN all networks) on random volumes of one
channel, in batches of --batch. `compiled` is torch.compile with bf16. `--device cpu` tries the script without a GPU;
peak memory is then not known.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shared_models.job import Job

MODES = ("fp32", "bf16", "compiled")
WARM_UP = 2  # steps that choose kernels and compile


def job_for(name: str, size: int, batch: int) -> Job:
    """The ready job of a network with volumes of this size."""
    from deploy.ready_job import ready_job
    from shared_models.job import Job

    ready = ready_job(name, 3)
    ready["data"]["crop"] = [size] * 3
    ready["training"]["batch_size"] = batch
    return Job.model_validate(ready)


def random_batch(job: Job, device: torch.device) -> dict[str, torch.Tensor]:
    """Volumes with the labels that the job's task has."""
    import torch

    count, shape = job.training.batch_size, (job.training.batch_size, job.data.channels, *job.data.crop)
    images = torch.rand(shape, device=device)
    classes = len(job.task.classes)
    match job.task.label:
        case "mask":
            label = torch.randint(0, classes, (count, 1, *job.data.crop), device=device)
        case "class":
            label = torch.arange(count, device=device) % classes
        case _:
            label = torch.rand_like(images)
    return {"image": images, "label": label}


def measure(job: Job, mode: str, device: torch.device, steps: int) -> tuple[float, int | None]:
    """Volumes a second, and bytes of GPU memory at the peak of a step; None where torch does not count them."""
    import torch

    from client.training import make_optimizers
    from shared_models.tasks import task_of
    from shared_models.zoo import build

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    task, network, batch = task_of(job), build(job).to(device).train(), random_batch(job, device)
    if mode == "compiled":
        compile_parts(network)
    optimizers = make_optimizers(network, job, task)
    began = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wait(device)
            began = time.perf_counter()
        own = dict(batch)
        for player, optimizer in optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            with contextlib.nullcontext() if mode == "fp32" else torch.autocast(device.type, torch.bfloat16):
                loss = task.step_loss(network, own, player)
            loss.backward()
            optimizer.step()
    wait(device)
    speed = steps * job.training.batch_size / (time.perf_counter() - began)
    return speed, torch.cuda.max_memory_allocated() if on_gpu else None


def compile_parts(network: nn.Module) -> None:
    """As a site does it: of a GAN each network, as each is called on its own."""
    names = [*getattr(network, "generators", ()), *getattr(network, "discriminators", ())]
    for part in [network.get_submodule(name) for name in names] or [network]:
        part.compile()


def wait(device: torch.device) -> None:
    """Until the GPU has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def line(name: str, size: int, batch: int, mode: str, device: torch.device, steps: int) -> str:
    """A row of the table; a network that cannot take this size, or that does not fit, says so in its place."""
    import torch

    from shared_models.errors import BadInput

    row = f"{name:16}{mode:10}"
    try:
        speed, memory = measure(job_for(name, size, batch), mode, device, steps)
    except BadInput as error:
        return f"{row}{error}"
    except torch.cuda.OutOfMemoryError:
        return f"{row}does not fit into the memory of this GPU"
    shown = f"{memory / 1e9:.2f} GB" if memory is not None else "unknown"
    return f"{row}{speed:>14.2f}{speed * size**3 / 1e6:>18.2f}{shown:>14}"


def main() -> None:
    """Parses the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=96, help="voxels along every axis")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", metavar="NAME", help="one network")
    parser.add_argument("--modes", default=",".join(MODES))
    arguments = parser.parse_args()
    import torch

    from shared_models.zoo import MODELS

    modes = arguments.modes.split(",")
    if not set(modes) <= set(MODES):
        parser.error(f"--modes takes {', '.join(MODES)}; found {arguments.modes}")
    names = [name for name, kind in MODELS.items() if 3 in kind.spatial_dims and arguments.only in (None, name)]
    if not names:
        parser.error(f"--only: there is no 3D network '{arguments.only}'")
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no GPU that torch can use, so nothing was measured; `--device cpu` tries the script.")
        sys.exit(0)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{where}, torch {torch.__version__}, volumes of {arguments.size}³ in batches of {arguments.batch}")
    print(f"{'network':16}{'mode':10}{'volumes/s':>14}{'million voxels/s':>18}{'peak memory':>14}")
    for name in names:
        for mode in modes:
            print(line(name, arguments.size, arguments.batch, mode, device, arguments.steps), flush=True)


if __name__ == "__main__":
    main()

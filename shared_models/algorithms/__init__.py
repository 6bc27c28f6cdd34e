"""The federated algorithms: one file each, both halves in it, one registry."""

from shared_models.algorithms.fedavg import FedAvg
from shared_models.job import Job

ALGORITHMS: dict[str, type[FedAvg]] = {"fedavg": FedAvg}


def algorithm_of(job: Job) -> FedAvg:
    """The algorithm that a job asks for."""
    return ALGORITHMS[job.federation.algorithm.name]()

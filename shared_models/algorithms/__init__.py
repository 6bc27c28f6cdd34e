"""The federated algorithms: one file each, both halves and the parameters in it, one registry."""

from typing import get_args

from shared_models.algorithms.algorithm import Algorithm, Gathered, ServerOptimizer
from shared_models.algorithms.cyclic import Cyclic
from shared_models.algorithms.ditto import Ditto
from shared_models.algorithms.fedavg import FedAvg
from shared_models.algorithms.fedbn import FedBN
from shared_models.algorithms.feddyn import FedDyn
from shared_models.algorithms.fednova import FedNova
from shared_models.algorithms.fedper import FedPer
from shared_models.algorithms.fedprox import FedProx
from shared_models.algorithms.fedrep import FedRep
from shared_models.algorithms.moon import Moon
from shared_models.algorithms.qfedavg import QFedAvg
from shared_models.algorithms.ring import Ring
from shared_models.algorithms.scaffold import Scaffold
from shared_models.algorithms.silobn import SiloBN

__all__ = ["ALGORITHMS", "Algorithm", "AnyAlgorithm", "FedAvg", "Gathered", "ServerOptimizer"]

AnyAlgorithm = (
    FedAvg
    | FedProx
    | Scaffold
    | FedDyn
    | FedNova
    | FedBN
    | SiloBN
    | Moon
    | Ditto
    | FedPer
    | FedRep
    | Cyclic
    | Ring
    | QFedAvg
)

ALGORITHMS: dict[str, type[Algorithm]] = {
    get_args(a.model_fields["name"].annotation)[0]: a for a in get_args(AnyAlgorithm)
}
"""By the name that a job asks for them with."""

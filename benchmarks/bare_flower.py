"""Flower used bare: its FedAvg on its own Ray simulation, two actors.

python benchmarks/bare_flower.py WORKLOAD FOLDER
"""

from __future__ import annotations

import logging

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workload import FIRST_STEP, SITES, load_site, network, tell, train, workload_and_folder

WORKLOAD, FOLDER = workload_and_folder()


def client() -> ClientApp:
    """Trains on the partition that Flower names."""
    app = ClientApp()
    workload, folder = WORKLOAD, FOLDER

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        if not (folder / FIRST_STEP).exists():  # an actor's output does not reach the harness
            (folder / FIRST_STEP).touch()
        site = int(context.node_config["partition-id"])  # type: ignore[call-overload]
        model = network(workload)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
        number = int(message.content["config"]["server-round"])  # type: ignore[index, call-overload, arg-type]
        train(model, *load_site(folder, site), workload, seed=1000 * (number - 1) + site)
        metrics = MetricRecord({"num-examples": workload.steps * workload.batch})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's FedAvg, without evaluation."""

    def told(number: int, arrays: ArrayRecord) -> MetricRecord:
        if number > 0:
            tell("round")
        return MetricRecord({"done": 1})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=SITES, min_available_nodes=SITES)
    arrays = ArrayRecord(network(WORKLOAD).state_dict())
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=WORKLOAD.rounds, evaluate_fn=told)


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(server, client(), num_supernodes=SITES, backend_config=resources)

"""A bare Flower app: one site gets a model, imports torch, and gives the model back."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def give_back(message: Message, context: Context) -> Message:
    """What every app of this field does at least: takes the weights into torch, and answers with them."""
    import torch  # noqa: F401

    state = message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


@server.main()
def main(grid: Grid, context: Context) -> None:
    """One message after the other, to the one site."""
    count, tensors, parameters = (int(context.run_config[key]) for key in ("messages", "tensors", "parameters"))
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.5)
    values = np.zeros(parameters // tensors, np.float32)
    arrays = ArrayRecord({f"tensor-{number}": Array(values + number) for number in range(tensors)})
    for _ in range(count):
        for reply in grid.send_and_receive([Message(RecordDict({"arrays": arrays}), nodes[0], "train")]):
            if reply.has_error():
                raise RuntimeError(reply.error)

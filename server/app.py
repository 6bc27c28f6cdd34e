"""The Flower `ServerApp` of a run: meet the sites, run the rounds, then whatever judges the result."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.checkpoint import CheckpointStore, RunState, save_weights
from server.events import EventLog
from server.initial import initial_network
from server.introduction import Introduction
from server.participation import Site
from server.planning import read_plan
from server.rounds import run_rounds
from shared_models.job import Job
from shared_models.weights import Weights, fingerprint, schema, travelling


@dataclass
class Result:
    """What the rounds leave behind."""

    best: Weights
    best_round: int
    best_used: dict[str, int]
    """See `RunState.best_used`."""
    sites: dict[str, Site]
    others: dict[str, Site]


def make_server_app(
    job: Job,
    run_dir: Path,
    events: EventLog,
    after: Callable[[Grid, Result], None],
    not_federated: Collection[str] = (),
    wait_seconds: float | None = None,
) -> ServerApp:
    """The one ServerApp, for every engine.

    Args:
        after: called with the grid and the result once the rounds are done.
        not_federated: names of nodes that take no part in rounds, such as the pooled baseline of a simulation.
        wait_seconds: how long real hospitals are waited for, before the rounds and between them; None for nobody.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        store = CheckpointStore(run_dir / "checkpoints", job.fingerprint())
        network, pretrained = initial_network(job, run_dir)
        tensors, initial = schema(network, job.federation.share), travelling(network, job.federation.share)
        del network
        state = resume(store, initial, events)
        events.emit(
            "run_started",
            name=job.name,
            rounds=job.federation.rounds,
            parameters=sum(array.size for array in initial.values()),
            bytes_model=sum(array.nbytes for array in initial.values()),
            resumed_from=state.round or None,
        )
        del initial
        if pretrained and not state.round:
            events.emit("pretrained", **pretrained)
        if (plan := read_plan(run_dir)) and not state.round:
            events.emit("planned", decisions=plan["decisions"], left_out=plan["left_out"])
        introduction = Introduction(grid, job, events, wait_seconds)
        introduction.begin()
        others = {name: introduction.ready.pop(name) for name in not_federated if name in introduction.ready}
        sites = introduction.ready
        state = run_rounds(grid, sites, job, tensors, state, store, events, introduction.gather)
        result = _finish(state, store, run_dir, job, sites, others)
        del state
        after(grid, result)

    return app


def resume(store: CheckpointStore, initial: Weights, events: EventLog) -> RunState:
    """The state behind the last whole round, with later events cut off; the initial one where there is none."""
    damaged: list[str] = []
    found = store.load(damaged.append)
    if found is None:
        events.cut(0)
        return RunState(initial, fingerprint=fingerprint(initial))
    state, events_size = found
    events.cut(events_size)
    for sentence in damaged:
        events.emit("warning", text=sentence)
    return state


def best_of(state: RunState, store: CheckpointStore) -> tuple[Weights, int, dict[str, int]]:
    """The model of the best round behind the last one, its number, and `RunState.best_used`."""
    if state.best_round is None:
        return state.weights, state.round, state.last_used
    best = state.weights if state.best_round == state.round else store.weights_of(state.best_round)
    return best, state.best_round, state.best_used


def _finish(
    state: RunState,
    store: CheckpointStore,
    run_dir: Path,
    job: Job,
    sites: dict[str, Site],
    others: dict[str, Site],
) -> Result:
    best, best_round, best_used = best_of(state, store)
    for name, weights, number in (("last", state.weights, state.round), ("best", best, best_round)):
        save_weights(
            run_dir / "models" / f"federated-{name}.safetensors",
            weights,
            job_hash=job.fingerprint(),
            round=number,
            fingerprint=fingerprint(weights),
        )
    return Result(best, best_round, best_used, sites, others)

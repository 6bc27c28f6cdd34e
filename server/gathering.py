"""One attempt at a round: every site asked, every update admitted and folded as it arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid

from server.admission import (
    Rejected,
    SiteFault,
    Update,
    admit,
    check_algorithm,
    check_move,
    check_weight,
    check_went_on,
)
from server.aggregation import Aggregator, RunningSum
from server.checkpoint import RunState
from server.events import EventLog
from server.outliers import Lineup, Score
from server.participation import NOT_CONNECTED, Reply, Site, ask, instruction
from server.robust import aggregator
from shared_models.algorithms.algorithm import trainable_names
from shared_models.job import Job
from shared_models.weights import TensorInfo, Weights, from_record, to_record


@dataclass
class Attempt:
    """What one attempt at a round has gathered."""

    total: Aggregator
    weights: dict[str, int] = field(default_factory=dict)
    """What every admitted update counts, by site."""
    went_on_from: dict[str, int] = field(default_factory=dict)
    """By site, see `Update.went_on_from`."""
    cases: int = 0
    """Σ training cases."""
    loss: float = 0.0
    """Σ training cases · loss, whatever an update counts."""
    updates: dict[str, Weights] = field(default_factory=dict)
    """By site, and only for an algorithm that hands models on."""
    scores: dict[str, Score] = field(default_factory=dict)
    """How each update compares with the others."""

    def fold(self, site: str, update: Update, keep: bool) -> None:
        """Takes an admitted update in."""
        self.total.add(site, update.tensors | update.extra, update.weight)
        self.weights[site] = update.weight
        self.went_on_from[site] = update.went_on_from
        self.cases += update.cases
        self.loss += update.loss * update.cases
        if keep:
            self.updates[site] = update.tensors


class Gatherer:
    """Asks sites for their updates, in the way that the algorithm wants it."""

    def __init__(
        self,
        grid: Grid,
        job: Job,
        tensors: Sequence[TensorInfo],
        state: RunState,
        events: EventLog,
    ) -> None:
        self._grid, self._job, self._state, self._events = grid, job, state, events
        self._algorithm = algorithm = job.federation.algorithm
        self._trainable = trainable_names(tensors)
        self._shapes = {entry.name: entry.shape for entry in tensors if entry.travels}
        self._extra = algorithm.extra(tensors)
        self._sent = to_record(algorithm.sends(state.algorithm))

    def gather(self, drawn: Sequence[Site], model: ArrayRecord, place: tuple[int, int]) -> Attempt:
        """The updates of the drawn sites.

        Args:
            model: the global one.
            place: the round and the attempt, for the record.
        """
        self._lineup = Lineup(self._job, place[0], self._trainable)
        if self._algorithm.relays:
            return self._relay(drawn, model, place)
        attempt = Attempt(aggregator(self._job, self._state.weights, self._trainable))
        # The largest first: where sites share a machine, the round ends sooner.
        order = sorted(drawn, key=lambda site: -site.cases["train"])
        starts = {site.name: self._start(site, model) for site in order}
        for site, update in self._updates(order, starts, place):
            attempt.fold(site, update, keep=self._algorithm.hands_on)
            del update  # or a model stays in memory until the next site answers
        attempt.scores = self._lineup.finish()
        return attempt

    def _relay(self, drawn: Sequence[Site], model: ArrayRecord, place: tuple[int, int]) -> Attempt:
        """One site after the other, in the order of their names; the model of the last one is what is left."""
        attempt = Attempt(RunningSum())
        for site in drawn:
            for name, update in self._updates([site], {site.name: model}, place):
                attempt.total = RunningSum()
                attempt.fold(name, update, keep=False)
                model = to_record(update.tensors)
        attempt.scores = self._lineup.finish()
        return attempt

    def _start(self, site: Site, model: ArrayRecord) -> ArrayRecord:
        own = self._algorithm.starts(self._state.algorithm, site.name)
        return model if own is None else to_record(own)

    def _updates(
        self, sites: Sequence[Site], starts: Mapping[str, ArrayRecord], place: tuple[int, int]
    ) -> Iterator[tuple[str, Update]]:
        """What is fit to be summed, with the name of its site; the rest only goes on record."""
        requests, cases = {}, {site.name: site.cases["train"] for site in sites}
        for site in sites:
            order = instruction(
                self._job,
                round=place[0],
                best_used=self._state.best_used.get(site.name, 0),
                last_used=self._state.last_used.get(site.name, 0),
                algorithm_since=self._state.algorithm_since,
            )
            content = RecordDict({"instruction": order, "weights": starts[site.name]})
            if self._sent:
                content["algorithm"] = self._sent
            requests[site.name] = (site.node, content)
        for reply in ask(self._grid, requests, MessageType.TRAIN, self._job.federation.deadline_seconds):
            update = self._admitted(reply, cases[reply.site], from_record(starts[reply.site]), place)
            if update:
                yield reply.site, update
            del reply, update

    def _admitted(self, reply: Reply, cases: int, start: Weights, place: tuple[int, int]) -> Update | None:
        """The update in a reply if it is fit to be summed; either way, what became of it goes on record.

        Args:
            cases: training cases that the site has said to have.
            start: the model that it began with.
        """
        update, status, reason, norm = None, "used", None, None
        try:
            if reply.message is None and reply.why == NOT_CONNECTED:
                raise SiteFault(NOT_CONNECTED)
            if reply.message is None:
                raise TimeoutError(reply.why)
            update = admit(reply.message, self._shapes, self._extra)
            check_weight(update, cases, self._job)
            check_went_on(update, self._state.last_used.get(reply.site, 0))
            moved = check_move(update.tensors, start, self._trainable)
            check_algorithm(update, moved, self._job, place[0])
            norm = self._lineup.add(reply.site, update.tensors, start)
        except TimeoutError as error:
            status, reason = "late", str(error)
        except SiteFault as error:
            status, reason = "failed", str(error)
        except Rejected as error:
            update, status, reason = None, "rejected", str(error)
        self._events.emit(
            "site_replied",
            round=place[0],
            attempt=place[1],
            site=reply.site,
            status=status,
            reason=reason,
            cases=update.cases if update else 0,
            skipped=update.skipped if update else 0,
            steps=update.steps if update else 0,
            loss=update.loss if update else None,
            update_norm=norm,
            seconds=round(update.seconds if update else reply.seconds, 3),
            bytes_down=reply.bytes_down,
            bytes_up=reply.bytes_up,
        )
        return update

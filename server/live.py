"""A run in the terminal: one live line for the round under way, one lasting line for each that is done.

The display knows nothing but the events of `events.jsonl`, so that it shows a finished run as well as a running one.
It starts no thread: workers may be forked while it is open.
"""

from __future__ import annotations

import json
import math
from collections import deque
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.events import Event
from server.judgement import FEDERATED, LOCAL, POOLED
from shared_models.page import natural

ALL = "all"
ROUND_LINES = 12  # of a longer run every k-th round is shown
HOSPITAL_ROWS = 10
REASONS = 5
WARNINGS = 10
LAST_WARNINGS = 3  # of those that were not shown: why a run stopped is among them


class LiveDisplay:
    """Shows the events it is given; use it as a context manager, so that the live line is gone at the end.

    Args:
        run_dir: the run's directory, for the result and where the report is.
        metric: the validation metric to show, as of `Job.selection_metric`.
        console: where to; without a terminal behind it, there is no live line and no control code.
    """

    def __init__(self, run_dir: Path, metric: str, console: Console | None = None) -> None:
        self._run_dir = run_dir
        self._metric = metric
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._began: datetime | None = None
        self._rounds = 0
        self._round: Event | None = None  # under way
        self._replied = 0
        self._finished: Event | None = None  # done, but perhaps still to be validated
        self._seconds: list[float] = []
        self._value: float | None = None
        self._sites: dict[str, Event] = {}
        self._baselines: list[Event] = []
        self._warnings = 0
        self._unsaid: deque[str] = deque(maxlen=LAST_WARNINGS)

    def __enter__(self) -> LiveDisplay:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.update("", refresh=True)
            self._live.stop()
        report, content = self._run_dir / "report.html", self._run_dir / "report.json"
        if self._began and content.exists():
            told = json.loads(content.read_text(encoding="utf-8"))
            for sentence in [*told["answer"][:1], *(f"! {row['text']}" for row in told["doubts"] if row["grave"])]:
                self._say(sentence)
        if self._began and report.exists():
            self._say(f"report   {report}")

    def handle(self, event: Event) -> None:
        """Show one event; kinds it does not know are passed over."""
        self._began = self._began or datetime.fromisoformat(event["time"])
        show = getattr(self, f"_{event['event']}", None)
        if show:
            show(event)
        if self._live.is_started:
            self._live.update(Text(self._line(event), no_wrap=True, overflow="ellipsis"), refresh=True)

    # --- what is said once, at the start ---

    def _run_started(self, event: Event) -> None:
        self._rounds = event["rounds"]
        size = f"{event['parameters']:,} parameters that travel, {event['bytes_model'] / 1e6:.3g} MB each way"
        self._say(f"{event['name']}: {_count(self._rounds, 'round')}, {size}")
        if event.get("resumed_from"):
            self._say(f"continues behind round {event['resumed_from']}")

    def _pretrained(self, event: Event) -> None:
        tensors = f"{event['matched']} of {event['tensors']} tensors"
        share = math.floor(1000 * event["share"]) / 10  # 100 only where it is all
        self._say(f"pretrained   {event['file']}: {tensors}, {share:g} % of the network's numbers")
        for key, what in (
            ("missing", "not in the file"),
            ("other_shape", "of another shape there"),
            ("unexpected", "in the file, not in the network"),
        ):
            if event[key]:
                self._say(f"! {_count(len(event[key]), 'tensor')} {what}, such as {event[key][0][:80]!r}")

    def _planned(self, event: Event) -> None:
        for decision in event["decisions"]:
            value = "as the files have it" if decision["value"] is None else decision["value"]
            self._say(f"plan   data.{decision['key']} {value}: {decision['why']}")
        for site, reason in event["left_out"].items():
            self._warn(f"{site} has no part in the plan: {reason}")

    def _site_ready(self, event: Event) -> None:
        if event["site"] != POOLED:
            self._sites[event["site"]] = event

    def _site_refused(self, event: Event) -> None:
        self._warn(f"{event['site']} does not take part: {event['reason']}")

    def _site_waiting(self, event: Event) -> None:
        self._say(f"{event['site']} is not ready yet: {event['reason']}")

    def _waiting_for_sites(self, event: Event) -> None:
        self._warn(f"{event['needed']} sites are needed and {event['connected']} connected: the run waits")

    def _print_sites(self) -> None:
        """The table of hospitals, once all have answered."""
        if not self._sites:
            return
        table = Table("hospital", box=None, pad_edge=False, header_style="bold")
        for column in ("train", "validation", "test", "quarantined"):
            table.add_column(column, justify="right")
        sites = {site: self._sites[site] for site in sorted(self._sites, key=natural)}
        self._sites.clear()
        shown = list(sites.items())[:HOSPITAL_ROWS]
        deployed = any("version" in event for _, event in shown)
        if deployed:
            for column in ("patients", "version", "policy"):
                table.add_column(column, justify="right")
        for site, event in shown:
            real = [str(sum(event["patients"].values())), event.get("version", ""), "allows it"] if deployed else []
            table.add_row(Text(site), *_numbers(event), *real)
        if len(sites) > len(shown):
            table.add_row(f"... of {len(sites)} in all", *map(str, _totals(list(sites.values()))))
        self._console.print(table)
        reasons = [
            (site, case, reason) for site, event in sites.items() for case, reason in event["quarantined"].items()
        ]
        for site, case, reason in reasons[:REASONS]:
            self._say(f"! {site}, {case} is quarantined: {reason}")
        if len(reasons) > REASONS:
            self._say(f"! {len(reasons) - REASONS} more are quarantined: the report says which and why")
        for site, event in sites.items():
            for text in event.get("warnings", ()):
                self._warn(f"{site}: {text}")

    # --- the rounds ---

    def _round_started(self, event: Event) -> None:
        self._print_sites()
        self._print_round()
        self._round, self._replied = event, 0

    def _site_replied(self, event: Event) -> None:
        self._replied += 1
        if event["status"] != "used":
            self._warn(f"round {event['round']}: {event['site']} is left out ({event['status']}): {event['reason']}")

    def _round_retried(self, event: Event) -> None:
        self._warn(f"round {event['round']} is tried again: {event['reason']}")

    def _round_finished(self, event: Event) -> None:
        self._finished = event
        self._seconds.append(event["seconds"])

    def _validated(self, event: Event) -> None:
        self._value = event["metrics"].get(self._metric)
        self._print_round(event)

    def _stopped_early(self, event: Event) -> None:
        self._print_round()
        for_nothing = _count(event["patience"], "validation")
        self._say(f"ends early: {for_nothing} in a row brought nothing better than round {event['best_round']}")
        self._rounds = event["round"]

    def _print_round(self, validated: Event | None = None) -> None:
        """The lasting line of the round that is done, if there is one to print."""
        event, self._finished = self._finished, None
        if event is None:
            return
        number, every = event["round"], math.ceil(self._rounds / ROUND_LINES)
        if number % every and number not in (1, self._rounds):
            return
        asked = len(self._round["sites"]) if self._round else event["sites_used"]
        parts = [f"round {number:>{len(str(self._rounds))}}/{self._rounds}", f"loss {_figure(event['loss'])}"]
        if validated:
            parts.append(f"{self._metric} {_figure(validated['metrics'].get(self._metric))}")
        parts += [f"{event['sites_used']}/{asked} hospitals", _duration(event["seconds"])]
        if validated and validated["best"]:
            parts.append("best so far")
        self._say("   ".join(parts))

    def _line(self, event: Event) -> str:
        """The live line: what is under way now."""
        elapsed = _duration((datetime.fromisoformat(event["time"]) - (self._began or datetime.min)).total_seconds())
        if self._round is None:
            ready = f"{len(self._sites)} hospitals ready" if self._sites else "the hospitals read their data"
            return f"{ready}   {elapsed}"
        number = self._round["round"]
        if number == self._rounds and self._seconds and event["event"] not in ("round_started", "site_replied"):
            return f"rounds done, judging   {len(self._baselines)} baselines trained   {elapsed}"
        left = (self._rounds - number + 1) * sum(self._seconds) / max(1, len(self._seconds))
        parts = [f"round {number}/{self._rounds}", f"{self._replied}/{len(self._round['sites'])} hospitals replied"]
        if self._value is not None:
            parts.append(f"{self._metric} {_figure(self._value)}")
        parts.append(f"{elapsed}, rounds end in about {_duration(left)}" if self._seconds else elapsed)
        return "   ".join(parts)

    # --- the end ---

    def _baseline_finished(self, event: Event) -> None:
        self._print_round()
        self._baselines.append(event)

    def _leave_one_out_started(self, event: Event) -> None:
        self._print_round()
        self._print_baselines()
        rounds = _count(event["rounds"], "round")
        self._say(f"leave-one-out {event['number']} of {event['federations']}: {rounds} without {event['site']}")

    def _judged(self, event: Event) -> None:
        self._print_round()
        self._print_baselines()

    def _print_baselines(self) -> None:
        done, self._baselines = self._baselines, []
        for name, models in (
            ("pooled", [event for event in done if event["model"] == POOLED]),
            ("local", [event for event in done if event["model"].startswith(LOCAL)]),
            ("leave-one-out", [event for event in done if event["model"].startswith("leave-one-out:")]),
        ):
            if models:
                steps, seconds = (sum(event[key] for event in models) for key in ("steps", "seconds"))
                trained = _count(len(models), "model")
                self._say(f"{name}: {trained}, {_count(steps, 'step')} in {_duration(seconds)} of computing")

    def _warning(self, event: Event) -> None:
        self._warn(event["text"])

    def _run_finished(self, event: Event) -> None:
        self._print_round()
        self._print_baselines()
        if (more := self._warnings - WARNINGS - len(self._unsaid)) > 0:
            last = f"the last {len(self._unsaid)}"
            self._say(f"! {_count(more, 'more warning')} in between: the report has them all; {last}:")
        for text in self._unsaid:
            self._say(f"! {text}")
        if event["status"] != "complete":
            self._say(f"stopped after {_duration(event['seconds'])}; everything so far is kept in {self._run_dir}")
            return
        evaluations = self._run_dir / "evaluations.json"
        if evaluations.exists():
            self._print_result(json.loads(evaluations.read_text(encoding="utf-8")))
        verdict = {
            0: "complete, nobody was left out (exit code 0)",
            4: "complete, but not everybody took part in everything (exit code 4): the report says who and why",
        }.get(event["exit_code"], f"complete (exit code {event['exit_code']})")
        self._say(f"{verdict}, {_duration(event['seconds'])}")
        self._say(f"models   {self._run_dir / 'models'} (best round {event['best_round']})")

    def _print_result(self, evaluations: dict[str, Any]) -> None:
        """The first headline metric of every hospital's held-out patients, under every kind of model."""
        metrics, models = evaluations["metrics"], evaluations["models"]
        name = next((key for key, info in metrics.items() if info.get("headline")), next(iter(metrics)))
        hospitals = sorted((site for site in models[FEDERATED] if site != ALL), key=natural)
        rows = sorted(hospitals, key=lambda site: _rank(models[FEDERATED][site][name], metrics[name]))[:HOSPITAL_ROWS]
        table = Table(f"{metrics[name]['label']}, test", box=None, pad_edge=False, header_style="bold")
        columns = [(FEDERATED, lambda site: FEDERATED)]
        if POOLED in models:
            columns.append((POOLED, lambda site: POOLED))
        if any(model.startswith(LOCAL) for model in models):
            columns.append(("local", lambda site: LOCAL + site))
        for title, _ in columns:
            table.add_column(title)
        for site in [*(site for site in hospitals if site in rows), ALL]:
            cells = [_cell(models.get(model(site), {}).get(site, {}).get(name)) for _, model in columns]
            table.add_row(Text(site), *cells)
        self._console.print(table)
        if len(rows) < len(hospitals):
            self._say(f"(the {len(rows)} weakest of {len(hospitals)} hospitals; the report has all)")

    def _warn(self, text: str) -> None:
        self._warnings += 1
        if self._warnings <= WARNINGS:
            self._say(f"! {text}")
        else:
            self._unsaid.append(text)

    def _say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def _numbers(event: Event) -> list[str]:
    return [str(number) for number in _totals([event])]


def _totals(events: list[Event]) -> list[int]:
    """Cases of each split, and cases quarantined, over some hospitals."""
    cases = [sum(event["cases"].get(split, 0) for event in events) for split in ("train", "validation", "test")]
    return [*cases, sum(len(event["quarantined"]) for event in events)]


def _rank(entry: dict[str, Any], info: dict[str, Any]) -> float:
    """Smaller for a weaker hospital; one without a value comes last."""
    if entry["value"] is None:
        return math.inf
    value: float = entry["value"]
    return value if info["larger_is_better"] else -value


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    if entry["value"] is None:
        return "undefined"
    interval = f" [{entry['low']:.3f}, {entry['high']:.3f}]" if entry.get("low") is not None else ""
    return f"{entry['value']:.3f}{interval}"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"

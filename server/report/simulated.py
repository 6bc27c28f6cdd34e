"""What a simulation made of its hospitals, in sentences: a reader must not take it for what the data are like."""

from __future__ import annotations

from shared_models.job import Job
from shared_models.job_scanners import Annotator
from shared_models.page import listed


def simulated(job: Job) -> list[str]:
    """One sentence for every difference that `job.simulation` asks for; [] without one."""
    if job.simulation is None:
        return []
    made, found = job.simulation, []
    if made.scanners is not None:
        of = f"the set {made.scanners.set}" if made.scanners.set else listed(sorted(made.scanners.by_hospital or {}))
        found.append(f"Images are altered as by other scanners ({of}), in training and in judging.")
    for sites, text in (
        (
            {site: _drawn(each) for site, each in made.annotators.items()},
            "Another annotator's masks or classes in training and validation",
        ),
        (made.missing_channels, "Images lack a channel"),
        (made.missing_classes, "A class has no training patients"),
        (made.participation, "Taking part is simulated (joining, leaving, answering or speed)"),
        ({site: fault.kind for site, fault in made.faulty.items()}, "Faulty or hostile on purpose"),
    ):
        if sites:
            names = [f"{site} ({what})" if isinstance(what, str) else site for site, what in sites.items()]
            found.append(f"{text}: {listed(names)}.")
    if made.partly_labelled:
        if isinstance(made.partly_labelled, str):
            where = "all hospitals (one organ each, in turn)"
        else:
            where = listed([f"{site} (only {listed(names)})" for site, names in sorted(made.partly_labelled.items())])
        found.append(f"Training and validation masks lack organs: {where}.")
    return found


def _drawn(annotator: Annotator) -> str:
    """What an annotator does, in words: `masks larger`, `10 % mislabelled`."""
    masks = [f"masks {annotator.masks}"] if annotator.masks else []
    return listed(
        masks + ([f"{annotator.mislabelled:.0%} mislabelled".replace("%", " %")] if annotator.mislabelled else [])
    )

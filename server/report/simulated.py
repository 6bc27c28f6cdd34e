"""What a simulation made of its hospitals, in sentences: a reader must not take it for what the data are like."""

from __future__ import annotations

from shared_models.job import Job
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
        (made.annotators, "Masks or classes are altered in training and validation"),
        (made.missing_channels, "Images lack a channel"),
        (made.missing_classes, "A class has no training patients"),
        (made.participation, "Taking part is simulated (joining, leaving, answering or speed)"),
        ({site: fault.kind for site, fault in made.faulty.items()}, "Faulty or hostile on purpose"),
    ):
        if sites:
            names = [f"{site} ({what})" if isinstance(what, str) else site for site, what in sites.items()]
            found.append(f"{text}: {listed(names)}.")
    if made.partly_labelled:
        where = "all hospitals" if isinstance(made.partly_labelled, str) else listed(sorted(made.partly_labelled))
        found.append(f"Training and validation masks lack organs: {where}.")
    return found

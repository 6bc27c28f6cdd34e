"""Who gets which patient: a data set divided among virtual hospitals, never a patient between two."""

from __future__ import annotations

import difflib
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_simulation import DirichletPartition, NaturalPartition, PathologicalPartition, QuantityPartition
from shared_models.seeds import derive_seed
from simulation.datasets.source import SourceCase

ATTEMPTS = 50  # at a random division in which every hospital has enough
RESERVED = ("pooled", "all")  # names that the run directory and the report use beside the hospitals'


@dataclass(frozen=True)
class Patient:
    """What a partition looks at."""

    id: str
    label: str
    """The commonest ``label_key`` of the patient's cases."""
    split: str


def partition(cases: Sequence[SourceCase], job: Job) -> dict[str, list[str]]:
    """Divide the patients among the hospitals as ``job.simulation.partition`` says.

    Every patient is in exactly one hospital. Where the data set has an official split, its patients of every split
    (and, for a label skew, of every class) are spread alike, so that a hospital is tested on the mixture that it
    trains on; the test patients of all hospitals together are the official test set.

    Returns:
        Patient ids by name of hospital, in the order of the data set; a function of the cases and the job's seed.

    Raises:
        BadInput: the patients cannot be divided like that.
    """
    assert job.simulation is not None, "open_dataset has refused a job without a simulation"
    setting = job.simulation.partition
    patients = _patients(cases)
    if isinstance(setting, NaturalPartition):
        hospitals = _natural(cases, setting, job.seed)
    else:
        count = job.simulation.hospitals or 1
        least = max(1, getattr(setting, "min_patients", 1))
        if count * least > len(patients):
            raise BadInput(
                f"{count} hospitals of at least {least} patients need {count * least} patients, but the data set has "
                f"{len(patients)}; take fewer hospitals" + (" or lower min_patients" if least > 1 else "")
            )
        if isinstance(setting, DirichletPartition):
            blocks = _dirichlet(patients, setting, count, job.seed)
        elif isinstance(setting, PathologicalPartition):
            blocks = _pathological(patients, setting, count, job.seed)
        elif isinstance(setting, QuantityPartition):
            blocks = _quantity(patients, setting, count, job.seed)
        else:
            blocks = _cut(patients, np.full(count, len(patients) / count), job.seed)
        hospitals = {f"hospital-{number}": block for number, block in enumerate(blocks, start=1)}
    order = {patient.id: place for place, patient in enumerate(patients)}
    return {name: sorted(ids, key=order.__getitem__) for name, ids in hospitals.items()}


def unassigned(cases: Sequence[SourceCase], job: Job) -> list[str]:
    """The patients of whom a natural partition's column says nothing; chance gives each of them a hospital."""
    assert job.simulation is not None
    setting = job.simulation.partition
    if not isinstance(setting, NaturalPartition):
        return []
    return [patient for patient, value in _values(cases, setting.column).items() if not value]


def _patients(cases: Sequence[SourceCase]) -> list[Patient]:
    """The patients in the order in which the data set has them."""
    labels: dict[str, Counter[str]] = {}
    splits: dict[str, str] = {}
    for case in cases:
        labels.setdefault(case.patient, Counter())[case.label_key] += 1
        if splits.setdefault(case.patient, case.split) != case.split:
            raise BadInput(
                f"patient {case.patient!r} is in {splits[case.patient] or 'no split'} and {case.split or 'no split'} "
                "of the data set; all cases of a patient belong in one split"
            )
    commonest = {patient: min(counts, key=lambda key: (-counts[key], key)) for patient, counts in labels.items()}
    return [Patient(patient, commonest[patient], split) for patient, split in splits.items()]


def _cut(patients: Sequence[Patient], sizes: np.ndarray, seed: int) -> list[list[str]]:
    """Blocks of about these sizes, of patients at random but with every official split spread evenly."""
    order = [patient.id for patient in _spread(patients, lambda patient: patient.split, seed)]
    ends = np.rint(np.cumsum(sizes)).astype(int).tolist()
    return [order[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _spread(patients: Sequence[Patient], group: Callable[[Patient], object], seed: int) -> list[Patient]:
    """A random order in which every group is spread evenly: any stretch of it has the groups in their proportions."""
    chance = np.random.default_rng(derive_seed(seed, "partition", "order")).permutation(len(patients))
    shuffled = [patients[index] for index in chance]
    sizes = Counter(map(group, shuffled))
    seen: Counter[object] = Counter()
    places = []
    for patient in shuffled:
        key = group(patient)
        seen[key] += 1
        places.append((seen[key] - 0.5) / sizes[key])
    return [shuffled[index] for index in np.argsort(places, kind="stable")]


def _quantity(patients: Sequence[Patient], setting: QuantityPartition, count: int, seed: int) -> list[list[str]]:
    """Everybody has ``min_patients``; a draw from Dirichlet(alpha) divides the rest."""
    generator = np.random.default_rng(derive_seed(seed, "partition", "sizes"))
    spare = len(patients) - count * setting.min_patients
    sizes = setting.min_patients + spare * generator.dirichlet(np.full(count, setting.alpha))
    # Whole patients, the largest remainders rounded up: so that no hospital falls below its minimum.
    whole = np.floor(sizes)
    whole[np.argsort(whole - sizes, kind="stable")[: len(patients) - int(whole.sum())]] += 1
    return _cut(patients, whole, seed)


def _dirichlet(patients: Sequence[Patient], setting: DirichletPartition, count: int, seed: int) -> list[list[str]]:
    """Draw divisions until each hospital has enough patients and somebody to train on.

    flwr-datasets cuts each class into blocks, in the order in which it gets the patients. Their official splits
    are spread evenly in that order, so that each block has them in the same proportions.
    """
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    _classes(patients)
    order = _spread(patients, lambda patient: (patient.label, patient.split), seed)
    table = Dataset.from_dict({"row": list(range(len(order))), "label": [patient.label for patient in order]})
    for attempt in range(ATTEMPTS):
        partitioner = DirichletPartitioner(
            num_partitions=count,
            partition_by="label",
            alpha=setting.alpha,
            min_partition_size=setting.min_patients,
            shuffle=False,
            seed=derive_seed(seed, "partition", attempt),
        )
        partitioner.dataset = table
        try:
            with warnings.catch_warnings(action="ignore"):  # about each draw that was no good
                blocks = [[order[row] for row in partitioner.load_partition(index)["row"]] for index in range(count)]
        except ValueError:  # ten draws were no good
            continue
        if all(any(patient.split in ("train", "") for patient in block) for block in blocks):
            return [[patient.id for patient in block] for block in blocks]
    raise BadInput(
        f"Dirichlet({setting.alpha:g}) gave no division of {len(patients)} patients in which each of {count} hospitals "
        f"has {setting.min_patients} of them; raise alpha, lower min_patients or take fewer hospitals"
    )


def _pathological(
    patients: Sequence[Patient], setting: PathologicalPartition, count: int, seed: int
) -> list[list[str]]:
    """Deal the classes like cards, and divide each class evenly among the hospitals that hold it.

    flwr-datasets' own partitioner does not fit: it lets every hospital draw by itself and drops the patients of the
    classes that none of them drew.
    """
    classes, each = _classes(patients), setting.classes_per_hospital
    if not each <= len(classes) <= count * each:
        raise BadInput(
            f"{count} hospitals of {each} classes each do not fit {len(classes)} classes, every one of which must be "
            f"at some hospital; classes_per_hospital can be {-(-len(classes) // count)} to {len(classes)}"
        )
    generator = np.random.default_rng(derive_seed(seed, "partition", "classes"))
    deck: list[str] = []
    hands: list[list[str]] = [[] for _ in range(count)]
    for hand in hands:
        while len(hand) < each:
            new = [label for label in deck if label not in hand]
            if not new:
                deck += [classes[index] for index in generator.permutation(len(classes))]
                continue
            hand.append(new[0])
            deck.remove(new[0])
    blocks: list[list[str]] = [[] for _ in range(count)]
    order = _spread(patients, lambda patient: (patient.label, patient.split), seed)
    for label in classes:
        holders = [block for block, hand in zip(blocks, hands, strict=True) if label in hand]
        own = [patient.id for patient in order if patient.label == label]
        if len(own) < len(holders):
            raise BadInput(
                f"class {label!r} has {len(own)} patients for the {len(holders)} hospitals that should see it; take "
                "fewer hospitals or lower classes_per_hospital"
            )
        for block, share in zip(holders, np.array_split(own, len(holders)), strict=True):
            block += share.tolist()
    return blocks


def _classes(patients: Sequence[Patient]) -> list[str]:
    """The classes that a label skew divides by."""
    classes = sorted({patient.label for patient in patients})
    if len(classes) < 2:
        raise BadInput(
            "a label-skewed partition needs patients of at least two classes, which this data set does not have "
            "(segmentation has none); use iid, quantity or natural"
        )
    return classes


def _natural(cases: Sequence[SourceCase], setting: NaturalPartition, seed: int) -> dict[str, list[str]]:
    values = _values(cases, setting.column)
    names: dict[str, str] = {}
    for value in sorted({value for value in values.values() if value}):
        names[value] = _file_name(value, taken=names.values())
    hospitals: dict[str, list[str]] = {name: [] for name in names.values()}
    for patient, value in values.items():
        chance = derive_seed(seed, "unassigned", patient) % len(names)
        hospitals[names[value] if value else list(hospitals)[chance]].append(patient)
    return hospitals


def _values(cases: Sequence[SourceCase], column: str) -> dict[str, str]:
    """Patient: the commonest value that the patient's cases have in a column, "" without any."""
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        value = case.columns.get(column, "").strip()
        counts.setdefault(case.patient, Counter()).update([value] if value else [])
    if not any(counts.values()):
        columns = sorted({name for case in cases for name in case.columns})
        near = difflib.get_close_matches(column, columns, n=1)
        raise BadInput(
            f"the data set has nothing in a column {column!r} that could say who is at which hospital; its columns are "
            f"{', '.join(columns) or 'none'}" + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return {
        patient: min(found, key=lambda value: (-found[value], value)) if found else ""
        for patient, found in counts.items()
    }


def _file_name(value: str, taken: Collection[str]) -> str:
    """A value as the name of a hospital and of its folder."""
    plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()  # Zürich: Zurich
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.") or "hospital"
    if name in RESERVED:
        name = f"hospital-{name}"
    number, unique = 2, name
    while unique in taken:
        unique, number = f"{name}-{number}", number + 1
    return unique

"""docs/results.md out of the numbers of the runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

HEAD = """# Results

Made by `python benchmarks/results.py`; nothing here was typed in. Every network is trained federatedly over three
virtual hospitals, and the networks that can be compared once more on all data pooled: the same initial weights, batch
and learning rate and, over all hospitals together, the same number of steps. Budgets are small, a few minutes of one
CPU core a network: these tables compare what networks learn **quickly**, not how good they can become.

Pooled training takes its steps one behind the other, where each of three hospitals takes a third of them side by side:
at budgets as small as these that alone is an advantage of pooling.

Settings are the same for all networks of a table; no network was tuned by itself. They were fixed before any test value
was looked at, but for one table, which says so (pneumonia). Values are over the test patients of all hospitals, with
95 % bootstrap intervals over patients; differences are paired.
"""

TITLES = {
    "hippocampus": "Hippocampus, 3D segmentation",
    "vessels": "Vessels of the retina, 2D segmentation",
    "pneumonia": "Pneumonia, 2D classification",
    "pneumonia-skewed": "Pneumonia, with label skew and fewer rounds",
    "denoise": "Denoising chest radiographs (Pix2Pix)",
    "look": "One scanner's look into another's (CycleGAN)",
    "synthesis": "Synthetic images for a hospital with few labels (DCGAN)",
}

ABOUT = {
    "hippocampus": "The three hospitals are the three intensity scales of the Decathlon's Task04. V-Net has the width "
    "of its paper, 45 million parameters; the other networks are small.",
    "vessels": "28 photographs of 14 children (CHASE_DB1), dealt out to three hospitals; the budget is very small for "
    "vessels of a few pixels.",
    "pneumonia": "PneumoniaMNIST dealt out at random, its official test images. Partition, learning rate and budget "
    "were chosen after the test values of the next table had been seen, on the same test images: these are not values "
    "of untouched test patients.",
    "pneumonia-skewed": "The same images, shares of pneumonia by hospital drawn from Dirichlet(0.5): few rounds of "
    "plain averaging between hospitals that see unlike classes. The table was run twice: at first AUROC was counted in "
    "bins so coarse that the images of DenseNet-121 and ViT, which had nearly the same probability, filled but a few.",
    "denoise": "A sample of NIH ChestX-ray8. Noise with a tenth of the intensity range as its deviation is added; the "
    "target is the image without it. The median filter is 3 pixels wide. Budget and normalisation (group) were chosen "
    "on validation patients.",
    "look": "Volumes of scale uint8 are translated into the look of float_le4095; both scales are at every hospital. "
    "The judge is a segmenter that each hospital trains on its float_le4095 cases alone: it sees uint8 volumes as they "
    "are, and translated.",
    "synthesis": "PneumoniaMNIST at three hospitals, one of which has labels for 5 % of its training images. The "
    "generator is trained by all three. Each hospital then trains a small classifier on its own images, with 200 "
    "synthetic images of each class and without.",
}
_COMPARED = ("hippocampus", "vessels", "pneumonia", "pneumonia-skewed")
_HEADER = (
    "| network | {label}, federated | pooled | federated minus pooled | worst hospital | parameters | MB a round, each "
    "way | seconds |\n|---|---|---|---|---|---|---|---|"
)


def page(numbers: Mapping[str, Mapping[str, Row]], jobs: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        numbers: study -> network -> what `results.py` collects.
        jobs: study -> its job file.
    """
    parts = [HEAD]
    for study, title in TITLES.items():
        if study in numbers:
            tables = _compared(numbers[study]) if study in _COMPARED else _generated(study, numbers[study])
            about = f"{ABOUT[study]} {_budget(jobs[study])} {_patients(numbers[study])}"
            parts += [f"## {title}", about, tables]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _budget(job: Mapping[str, Any]) -> str:
    training, rounds = job["training"], job["federation"]["rounds"]
    spec, crop = training["optimizer"], " x ".join(map(str, job["data"]["crop"]))
    return (
        f"Budget: {rounds} rounds of {training['local_steps']} steps at each hospital, batches of "
        f"{training['batch_size']} at {crop}, {spec['name']}, learning rate {spec['learning_rate']:g}."
    )


def _patients(rows: Mapping[str, Row]) -> str:
    """How many patients each hospital trains with and is judged on."""
    patients: Mapping[str, Any] = next((row["patients"] for row in rows.values() if "failed" not in row), {})
    said = [f"{site} {of['train']} / {of['test']}" for site, of in patients.items() if site != "pooled"]
    return f"Patients, training / test: {', '.join(said)}." if said else ""


def _compared(rows: Mapping[str, Row]) -> str:
    """One line a network, federated beside pooled, and in words where federation does worse."""
    done = {network: row for network, row in rows.items() if "failed" not in row}
    lines = [f"{network} failed: {row['failed']}\n" for network, row in rows.items() if "failed" in row]
    if not done:
        return "\n".join(lines)
    metrics = next(iter(done.values()))["metrics"]
    main = next(name for name, info in metrics.items() if info["headline"])
    lines += [_HEADER.format(label=metrics[main]["label"]), *(_line(name, row, main) for name, row in done.items()), ""]
    best = max(done, key=lambda network: done[network]["models"]["federated"]["all"][main]["value"])
    lines.append(f"Best at this budget: {best}.")
    worse = [name for name, row in done.items() if (_gap(row, main).get("high") or 0) < 0]
    if worse:
        lines.append(f"Federated training is clearly worse than pooled for {', '.join(worse)}.")
    else:
        lines.append("For no network is federated training clearly worse than pooled.")
    lines.append("Seconds are those of all rounds, on one core beside another run.")
    return "\n".join(lines)


def _line(network: str, row: Row, main: str) -> str:
    ours = row["models"]["federated"]
    values = {site: of[main]["value"] for site, of in ours.items() if site != "all" and _known(of[main])}
    worst = min(values, key=values.__getitem__)
    cells = [
        network,
        _value(ours["all"][main]),
        _value(row["models"]["pooled"]["all"][main]),
        _value(_gap(row, main), "+"),
        f"{worst} {values[worst]:.3f}",
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['megabytes']:g}",
        str(row["seconds"]),
    ]
    return f"| {' | '.join(cells)} |"


def _gap(row: Row, main: str) -> Mapping[str, Any]:
    gap: Mapping[str, Any] = row["differences"]["federated-pooled"][main]
    return gap


def _generated(study: str, rows: Mapping[str, Row]) -> str:
    """Every metric, by model; for the synthesis by hospital."""
    parts = []
    for network, row in rows.items():
        if "failed" in row:
            parts.append(f"{network} failed: {row['failed']}")
            continue
        models = row["models"]
        columns = models["federated"] if study == "synthesis" else {model: of["all"] for model, of in models.items()}
        lines = [f"| {network} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for metric, info in row["metrics"].items():
            cells = [_value(values.get(metric, {})) for values in columns.values()]
            unit = f" ({info['unit']})" if info["unit"] else ""
            lines.append(f"| {info['label']}{unit} | " + " | ".join(cells) + " |")
        verdict = _VERDICTS[study](row["models"]["federated"])
        cost = f"{row['parameters'] / 1e6:.2f} M parameters, {row['megabytes']:g} MB a round, {row['seconds']} s."
        parts.append("\n".join(lines) + f"\n\n{verdict} {cost}")
    parts.append(f"![{TITLES[study]}](images/results-{study}.png)")
    return "\n\n".join(parts)


def _denoised(models: Mapping[str, Any]) -> str:
    ours, median = models["all"]["psnr"], models["all"]["psnr_median"]
    clearly = "" if ours["low"] > median["high"] else "not clearly "
    return f"The translated images are {clearly}better than the filtered ones."


def _translated(models: Mapping[str, Any]) -> str:
    before, after = models["all"]["dice_before"], models["all"]["dice_after"]
    if after["high"] < before["low"]:
        return "At this budget translation does harm: the segmenter does better on the volumes as they are."
    better = after["low"] > before["high"]
    return "Translation helps the segmenter." if better else "Translation makes no clear difference to the segmenter."


def _synthesised(models: Mapping[str, Any]) -> str:
    helped = [site for site, of in models.items() if of["auroc_gain"]["low"] > 0]
    harmed = [site for site, of in models.items() if of["auroc_gain"]["high"] < 0]
    said = (
        f"Synthetic images help at {', '.join(helped)}." if helped else "Synthetic images help nowhere at this budget."
    )
    return said + (f" They harm at {', '.join(harmed)}." if harmed else "")


_VERDICTS = {"denoise": _denoised, "look": _translated, "synthesis": _synthesised}


def _known(value: Mapping[str, Any]) -> bool:
    return value.get("value") is not None


def _value(of: Mapping[str, Any], sign: str = "") -> str:
    """A value with its interval and, where it is known, the number of cases behind it."""
    if not _known(of):
        return "undefined" if of else ""
    digits = 1 if abs(of["value"]) >= 10 else 3
    bounds = f" [{of['low']:{sign}.{digits}f}, {of['high']:{sign}.{digits}f}]" if of.get("low") is not None else ""
    count = f", n = {of['n']}" if of.get("n") else ""
    return f"{of['value']:{sign}.{digits}f}{bounds}{count}"

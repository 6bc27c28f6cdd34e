"""MedMNIST v2 (Yang et al. 2023, doi:10.1038/s41597-022-01721-8): one npz a set, 2D and 3D, with an official split.

The collection does not say which images are of the same patient, so every image counts as its own patient. Where
the images of a set do share patients, its intervals are narrower than they should be.
"""

from __future__ import annotations

from pathlib import Path

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_simulation import MedMNISTDataset
from simulation.datasets.fetch import fetch
from simulation.datasets.files import cache_folder
from simulation.datasets.source import SourceCase, array_shape, label_keys, labels_as_text, read_array

URL = "https://zenodo.org/records/10519652/files"
SIZES = (28, 64, 128, 224)

# MD5 by size, in the order of SIZES, as published with the collection; 3D sets come in the two smaller sizes.
MD5 = {
    "pathmnist": (
        "a8b06965200029087d5bd730944a56c1",
        "55aa9c1e0525abe5a6b9d8343a507616",
        "ac42d08fb904d92c244187169d1fd1d9",
        "2c51a510bcdc9cf8ddb2af93af1eadec",
    ),
    "chestmnist": (
        "02c8a6516a18b556561a56cbdd36c4a8",
        "9de6cd0b934ebb5b7426cfba5efbae16",
        "db107e5590b27930b62dbaf558aebee3",
        "45bd33e6f06c3e8cdb481c74a89152aa",
    ),
    "dermamnist": (
        "0744692d530f8e62ec473284d019b0c7",
        "b70a2f5635c6199aeaa28c31d7202e1f",
        "2defd784463fa5243564e855ed717de1",
        "8974907d8e169bef5f5b96bc506ae45d",
    ),
    "octmnist": (
        "c68d92d5b585d8d81f7112f81e2d0842",
        "e229e9440236b774d9f0dfef9d07bdaf",
        "0a97e76651ace45c5d943ee3f65b63ae",
        "abc493b6d529d5de7569faaef2773ba3",
    ),
    "pneumoniamnist": (
        "28209eda62fecd6e6a2d98b1501bb15f",
        "8f4eceb4ccffa70c672198ea285246c6",
        "05b46931834c231683c68f40c47b2971",
        "d6a3c71de1b945ea11211b03746c1fe1",
    ),
    "retinamnist": (
        "bd4c0672f1bba3e3a89f0e4e876791e4",
        "afda852cc34dcda56f86ad2b2457dbcc",
        "e48e916a24454daf90583d4e6efb1a18",
        "eae7e3b6f3fcbda4ae613ebdcbe35348",
    ),
    "breastmnist": (
        "750601b1f35ba3300ea97c75c52ff8f6",
        "742edef2a1fd1524b2efff4bd7ba9364",
        "363e4b3f8d712e9b5de15470a2aaadf1",
        "b56378a6eefa9fed602bb16d192d4c8b",
    ),
    "bloodmnist": (
        "7053d0359d879ad8a5505303e11de1dc",
        "2b94928a2ae4916078ca51e05b6b800b",
        "adace1e0ed228fccda1f39692059dd4c",
        "b718ff6835fcbdb22ba9eacccd7b2601",
    ),
    "tissuemnist": (
        "ebe78ee8b05294063de985d821c1c34b",
        "123ece2eba09d0aa5d698fda57103344",
        "61b955355d7425a89687b06cca3ce0c2",
        "b077128c4a949f0a4eb01517f9037b9c",
    ),
    "organamnist": (
        "68e3f8846a6bd62f0c9bf841c0d9eacc",
        "2dcccc29b88e6da5a01161ef20cda288",
        "eeae80d0a227a8d099027e1b3cfd3b60",
        "50747347e05c87dd3aaf92c49f9f3170",
    ),
    "organcmnist": (
        "b9ceb9546e10131b32923c5bbeaea2b1",
        "3ce34a8724ea6f548e6db4744d03b6a9",
        "773c1f009daa3fe5d9a2a201b2a7ed94",
        "050f5e875dc056f6768abf94ec9995d1",
    ),
    "organsmnist": (
        "9ab87b696fb54e2a387ebe992d6ed5f1",
        "53a6d115339d874c25e309a994ff46d3",
        "ded0c5fa01a95dc4978b956f613e9b8e",
        "b354719e553fbbb2513d5533f52a4cb1",
    ),
    "organmnist3d": (
        "a0c5a1ff56af4f155c46d46fbb45a2fe",
        "58a2205adf14a9d0a189cb06dc78bf10",
    ),
    "nodulemnist3d": (
        "8755a7e9e05a4d9ce80a24c3e7a256f3",
        "c47c5b7d457bf6332200d2ea6d64ecd8",
    ),
    "adrenalmnist3d": (
        "bbd3c5a5576322bc4cdfea780653b1ce",
        "17721accfe9fb005146a47d33bc54b2f",
    ),
    "fracturemnist3d": (
        "6aa7b0143a6b42da40027a9dda61302f",
        "f01d7e6316aedf4210da0da5b7437b42",
    ),
    "vesselmnist3d": (
        "b41fd4f7e7e2feedddb201585ecafa1b",
        "6bb274a8846e1097066dcd64e2c4520f",
    ),
    "synapsemnist3d": (
        "1235b78a3cd6280881dd7850a78eadb6",
        "43bd14ebf3af9d3dd072446fedc14d5e",
    ),
}

SPLITS = {"train": "train", "val": "validation", "test": "test"}


def cases(job: Job, dataset: MedMNISTDataset, data_dir: Path | None) -> list[SourceCase]:
    """Every image of the three official splits. Labels are class indices, several joined by ";" (chestmnist)."""
    archive = _find(dataset, data_dir)
    split_of, references, labels = [], [], []
    for name, split in SPLITS.items():
        texts = labels_as_text(read_array(archive, f"{name}_labels"))
        images = array_shape(archive, f"{name}_images")[0]
        if images != len(texts):
            raise BadInput(f"{archive} has {images} {name}_images but {len(texts)} {name}_labels; download it again")
        split_of += [split] * images
        references += [f"{archive}::{name}_images[{index}]" for index in range(images)]
        labels += texts
    names = [f"{dataset.flag}-{number:06d}" for number in range(len(labels))]
    rows = zip(names, references, labels, split_of, label_keys(labels), strict=True)
    return [SourceCase(name, name, (image,), label, split, key) for name, image, label, split, key in rows]


def _find(dataset: MedMNISTDataset, data_dir: Path | None) -> Path:
    name = f"{dataset.flag}.npz" if dataset.size == 28 else f"{dataset.flag}_{dataset.size}.npz"
    if data_dir is None:
        known = dict(zip(SIZES, MD5.get(dataset.flag, ()), strict=False))
        if dataset.size not in known:
            raise BadInput(
                f"MedMNIST has no set {dataset.flag!r} of size {dataset.size}; the sets are {', '.join(MD5)}, in the "
                "sizes 28, 64, 128 and 224 (3D: 28 and 64); an npz of your own is read from --data-dir"
            )
        return fetch(f"{URL}/{name}?download=1", f"md5:{known[dataset.size]}", cache_folder("datasets", name))
    for path in (data_dir / name, data_dir / dataset.flag / name):
        if path.is_file():
            return path
    raise BadInput(
        f"there is no {name} in {data_dir}, nor in its folder {dataset.flag}; get it from {URL}/{name}, "
        "or leave --data-dir out to have it fetched"
    )

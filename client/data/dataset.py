"""The usable cases of one site, prepared and cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from client.data.cache import CaseCache
from client.data.manifest import SPLITS, Case, read_manifest
from client.data.preflight import preflight, refuse_unusable
from client.data.preprocess import case_keys, prepare, sample_of, sample_tensors
from client.data.shelf import pack, shelf_key, unpack
from shared_models.errors import BadInput
from shared_models.faults import Fault
from shared_models.job import Job


class SiteData:
    """A site's cases by split, without those that preflight set aside.

    Attributes:
        folder: the manifest's folder.
        report: what preflight found.
    """

    def __init__(
        self,
        manifest: Path,
        job: Job,
        site: str,
        cache: CaseCache,
        *,
        root: Path | None = None,
        report_folder: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read the manifest and run preflight, or read its report again when nothing has changed.

        Args:
            root: see `read_manifest`.
            report_folder: where ``preflight.json`` is kept; the manifest's folder unless said otherwise.
            progress: called with (done, total) while cases are checked.

        Raises:
            BadInput: the manifest is wrong, too many cases are bad, or none is left to train on.
        """
        self.folder = manifest.parent
        self._job = job
        self._cache = cache
        try:
            cases = read_manifest(manifest, job, site, root=root)
        except BadInput as error:
            raise Fault(str(error), "manifest") from error
        self.report = preflight(
            cases,
            self.folder,
            job,
            site=site,
            cache=cache,
            report_folder=report_folder or self.folder,
            progress=progress,
        )
        refuse_unusable(self.report, job)
        usable = [case for case in cases if case.id not in self.report.quarantined]
        self._cases = {split: tuple(case for case in usable if case.split == split) for split in SPLITS}
        self._usable = {case.id: case for case in usable}
        self._keys = case_keys(usable, self.folder, job, self.report.files)
        self._shelf_of = {case_id: shelf for shelf in self.report.shelves for case_id in shelf}
        self._small: dict[str, dict[str, Tensor]] = {}  # cases of the shelves opened so far, mapped from disk

    def cases(self, split: str) -> Sequence[Case]:
        """The usable cases of ``train``, ``validation`` or ``test``, in the order of the manifest."""
        return self._cases[split]

    def samples(self, split: str) -> Sequence[dict[str, Any]]:
        """The prepared cases of a split, each loaded when it is asked for."""
        return _Samples(self, self._cases[split])

    def load(self, case: Case) -> dict[str, Any]:
        """The prepared case (see `prepare`), from the cache where it is there.

        The tensors may be shared with the cache: do not write into them.

        Raises:
            BadInput: the case is not cached, and its file has changed or cannot be read any more.
        """
        if case.id in self._shelf_of and case.id not in self._small:
            self._open_shelf(self._shelf_of[case.id])
        tensors = self._small.get(case.id)
        if tensors is None:
            key = self._keys[case.id]
            tensors = self._cache.get(key)
            if tensors is None:
                tensors = self._prepared(case)
                self._cache.put(key, tensors)
        return sample_of(tensors, case)

    def _open_shelf(self, ids: Sequence[str]) -> None:
        key = shelf_key([self._keys[case_id] for case_id in ids])
        packed = self._cache.get(key)
        if packed is None:
            packed = pack([self._prepared(self._usable[case_id]) for case_id in ids])
            self._cache.put(key, packed)
        self._small.update(zip(ids, unpack(packed), strict=True))

    def _prepared(self, case: Case) -> dict[str, Tensor]:
        """Prepare a case anew, unless its files are no longer those that its key stands for."""
        if changed := self.report.changed_file(case, self.folder, self._job):
            text = f"{changed} has changed since it was checked: start again, so that it is checked anew."
            raise Fault(text, "changed")
        return sample_tensors(prepare(case, self.folder, self._job))


class _Samples(Sequence[dict[str, Any]]):
    """Cases that are loaded one at a time."""

    def __init__(self, data: SiteData, cases: Sequence[Case]) -> None:
        self._data, self._of = data, cases

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: Any) -> Any:
        return self._data.load(self._of[index])

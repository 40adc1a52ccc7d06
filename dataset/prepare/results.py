"""Reports the result of preparing a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dataset.prepare.manifest import MANIFEST, Manifest, read_manifest


def report_result(
    folder: Path, manifest: Manifest | None, sizes: Mapping[str, int], report: Callable[[str], object]
) -> None:
    """Reports what was built, what was skipped, and why. If ``manifest`` is None, ``folder`` was already complete."""
    if manifest is None:
        skipped = read_manifest(folder).counts.skipped
        missing = {unit: skipped[f"missing {unit}"] for unit in ("image", "video") if skipped[f"missing {unit}"]}
        listed = ", ".join(f"{number:,} {unit}{'s' if number > 1 else ''}" for unit, number in missing.items())
        again = f"; these were missing: {listed}; --overwrite searches for them again" if missing else ""
        report(f"{folder}: already complete, built from the same files with the same flags; nothing to do{again}")
        return
    counts = manifest.counts
    report(f"{manifest.folder}: {_listed(counts.written)}; read: {_listed(counts.read)}")
    for unit, official in sizes.items():
        if unit in counts.read and counts.read[unit] != official:
            report(f"  {unit}: {counts.read[unit]:,} in the given files, {official:,} in the official files")
    for line in counts.lines():
        report(f"  {line}")
    if manifest.values.get("statuses"):
        report(f"  img2dataset: {_listed(manifest.values['statuses'])}")
    leaks = manifest.values.get("leaks", {"not_checked": [], "not_linked": [], "contradictory": ""})
    if leaks["not_checked"]:
        report(f"  not checked against the held-out images of: {', '.join(leaks['not_checked'])}")
    for files in leaks["not_linked"]:
        report(f"  ids of held-out images are not linked between sets: there is no {files}")
    if leaks["contradictory"]:
        report(f"  {leaks['contradictory']}")
    report(f"  manifest: {manifest.folder / MANIFEST}")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {unit}" for unit, number in counts.items()) or "nothing"

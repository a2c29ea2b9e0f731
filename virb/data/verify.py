"""Looks whether a dataset on disk is what was published: numbers, pairs, every image decoded, every target read, images in two splits."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from virb.data.datasets import load_dataset
from virb.data.datasets.common import EXTENSIONS
from virb.data.datasets.facts import FACTS, Count
from virb.data.datasets.imagenet import LOW_SHOT_LISTS
from virb.data.images import Dataset, FileImages, ImageList
from virb.data.prepare import split_record, stored_split
from virb.data.sequences import FileSequence
from virb.data.verify_targets import check_targets
from virb.errors import BadImage, UserError

Tell = Callable[[str, int, int], None]  # what is read, images done, images in all
_DIGEST = 16  # bytes
_CHUNK = 64  # images that a thread takes at a time
_NAMED = 10  # files that a finding names
_FOLDERS = "folders of ViRB 2021"  # a reader's note where somebody sorted the images into splits
# Their numbers are published in round figures, or what they list has left the web: a difference is to know, not a mistake.
_ROUGH = ("kinetics", "thor-num-steps", "thor-actions", "thor-depth", "taskonomy", "nuscenes-actions")
# Two kinds of files about the same thing, by stem: (folder, ending) each. What tasks read is paired by the readers.
_PAIRS: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "pets": (("images", ".jpg"), ("annotations/trimaps", ".png")),
    "voc2007": (("JPEGImages", ".jpg"), ("Annotations", ".xml")),
}


@dataclass(frozen=True)
class Finding:
    """Something that is ``wrong``, or else to know; the names of some of the files that it is about."""

    wrong: bool
    text: str
    names: tuple[str, ...] = ()


@dataclass
class Report:
    """Findings, and the numbers of samples and images that were looked at."""

    dataset: Dataset | None = None
    findings: list[Finding] = field(default_factory=list)
    decoded: int = 0

    @property
    def ok(self) -> bool:
        return not any(finding.wrong for finding in self.findings)

    def wrong(self, text: str, names: Sequence[str] = ()) -> None:
        self.findings.append(Finding(True, text, tuple(names[:_NAMED])))

    def know(self, text: str, names: Sequence[str] = ()) -> None:
        self.findings.append(Finding(False, text, tuple(names[:_NAMED])))


def verify(name: str, root: Path, *, decode: bool = True, workers: int | None = None, tell: Tell = lambda *_: None) -> Report:
    """Reads the dataset ``name`` below ``root`` as tasks do, and looks at all of it. Changes nothing.

    ``decode``: every image in full, in ``workers`` threads (one per core by default), which also finds equal images, and every target that
    has a value per pixel.
    """
    report = Report()
    try:
        report.dataset = dataset = load_dataset(name, root)
    except UserError as error:  # lists and images that do not fit together are found while reading
        report.wrong(str(error))
        return report
    _check_counts(name, dataset, report)
    for folder in _folders(dataset):
        _check_pairs(name, folder, report)
        _check_stored_split(dataset, folder, report)
        _check_low_shot_lists(name, dataset, folder, report)
    _check_listed(dataset, report)
    _check_shared(dataset, report)
    if decode:
        _check_images(name, dataset, workers or os.cpu_count() or 1, tell, report)
        for is_wrong, text, names in check_targets(dataset, workers or os.cpu_count() or 1, tell):
            (report.wrong if is_wrong else report.know)(text, names)
    return report


def _check_counts(name: str, dataset: Dataset, report: Report) -> None:
    facts = FACTS.get(name)
    if facts is None:
        return
    tell = report.know if name in _ROUGH else report.wrong
    found = next((splits for start, splits in facts.by_note.items() if dataset.note.startswith(start)), None)
    splits, in_all = (facts.splits, facts.total) if found is None else (found, None)
    for split, count in splits.items():
        there = len(dataset.samples.get(split, ()))
        if there not in _allowed(count):
            tell(f"{split} has {there:,} samples; published are {' or '.join(f'{n:,}' for n in _allowed(count))}")
    total = sum(map(len, dataset.samples.values()))
    if in_all not in (None, total):
        tell(f"there are {total:,} samples; published are {in_all:,}")
    n_classes = len(next(iter(dataset.classes.values()), ()))
    if facts.n_classes not in (None, n_classes):
        tell(f"there are {n_classes:,} classes; published are {facts.n_classes:,}")


def _allowed(count: Count) -> tuple[int, ...]:
    return count if isinstance(count, tuple) else (count,)


def _folders(dataset: Dataset) -> list[Path]:
    roots = (getattr(images, "root", None) for images in dataset.lists.values())
    return [Path(root) for root in dict.fromkeys(root for root in roots if root is not None)]


def _check_pairs(name: str, folder: Path, report: Report) -> None:
    if name not in _PAIRS:
        return
    (first, first_ending), (second, second_ending) = _PAIRS[name]
    one, two = _stems(folder / first, first_ending), _stems(folder / second, second_ending)
    if two is None or one is None:  # not every task needs the second
        return
    for place, ending, missing in ((second, second_ending, sorted(one - two)), (first, first_ending, sorted(two - one))):
        if missing:
            report.wrong(f"{len(missing):,} files that their pair wants are not in {folder / place}", [stem + ending for stem in missing])


def _stems(folder: Path, ending: str) -> set[str] | None:
    if not folder.is_dir():
        return None
    return {name[: -len(ending)] for name in os.listdir(folder) if name.endswith(ending) and not name.startswith(".")}


def _check_stored_split(dataset: Dataset, folder: Path, report: Report) -> None:
    stored = stored_split(folder)
    if stored is None or stored.get("rule") != dataset.note:
        return
    now = split_record(dataset)
    for split in dataset.samples:
        before, here = set(map(str, stored.get(split) or ())), set(map(str, now[split]))  # type: ignore[call-overload]
        changed = sorted(before ^ here)
        if changed:
            report.wrong(f"{split} differs from the split that was stored in {folder} by {len(changed):,} samples", changed)


def _check_low_shot_lists(name: str, dataset: Dataset, folder: Path, report: Report) -> None:
    """ImageNet's lists of 1 % and 10 %, where they lie beside its images."""
    if name != "imagenet" or "train" not in dataset.samples:
        return
    for file, (_, count) in LOW_SHOT_LISTS.items():
        try:
            names = (folder / file).read_text(encoding="utf-8").split()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            report.wrong(f"{folder / file} cannot be read ({error})")
            continue
        if len(names) != count:
            report.wrong(f"{file} has {len(names):,} names; published are {count:,}")
        known = {PurePosixPath(str(sample)).stem for sample in dataset.samples["train"].ids}
        unknown = [listed for listed in names if PurePosixPath(listed).stem not in known]
        if unknown:
            report.wrong(f"{len(unknown):,} names of {file} stand for no image of train", unknown)


def _check_listed(dataset: Dataset, report: Report) -> None:
    """Images that lie beside those of the splits and are in none."""
    listed: dict[tuple[str, str], set[str]] = {}
    for images in dataset.lists.values():
        if isinstance(images, FileImages):
            for path in images.paths:
                parent, _, file = path.rpartition("/")
                listed.setdefault((images.root, parent), set()).add(file)
    for samples in dataset.samples.values():  # targets may lie beside their images
        for values in samples.targets.values():
            if isinstance(values, FileSequence):
                for path in values.paths:
                    parent, _, file = path.rpartition("/")
                    listed.get((values.root, parent), set()).add(file)
    extra = []
    for (root, parent), files in listed.items():
        with os.scandir(os.path.join(root, parent)) as entries:
            names = (entry.name for entry in entries if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."))
            extra += [f"{parent}/{name}" for name in names if name not in files]
    if extra:
        report.know(f"{len(extra):,} images lie beside the others and are in no split", sorted(extra))


def _check_shared(dataset: Dataset, report: Report) -> None:
    """What two splits have in common without having a sample in common: images of several samples each, and what samples come from
    (scenes, drives), of which a test is easier than of new ones."""
    for i, (first, one) in enumerate(dataset.samples.items()):
        for second in list(dataset.samples)[i + 1 :]:
            other = dataset.samples[second]
            paths = [set(getattr(dataset.lists[part.images], "paths", ())) for part in (one, other)]
            if one.images != other.images and (both := paths[0] & paths[1]):
                report.know(f"{len(both):,} images of {second} are those of {first}, too", sorted(both))
            if (one.units == one.ids).all() or (other.units == other.ids).all():
                continue
            if shared := set(one.units.tolist()) & set(other.units.tolist()):
                n_units, n_samples = len(set(other.units.tolist())), int(np.isin(other.units, list(shared)).sum())
                text = f"{len(shared):,} of the {n_units:,} places or drives of {second} ({n_samples:,} samples) are in {first}, too"
                report.know(text, sorted(shared))


def _check_images(name: str, dataset: Dataset, workers: int, tell: Tell, report: Report) -> None:
    """Decodes everything; equal pixels are equal images, whatever file they are in."""
    total = sum(map(len, dataset.lists.values()))
    digests: dict[str, list[bytes | None]] = {key: [] for key in dataset.lists}  # None where there is no image
    bad: list[str] = []
    tell("decoding", 0, total)
    with ThreadPoolExecutor(workers) as pool:
        for key, images in dataset.lists.items():
            for results in _in_order(pool, images, 4 * workers):
                bad += [result for result in results if isinstance(result, str)]
                digests[key] += [None if isinstance(result, str) else result for result in results]
                report.decoded += len(results)
                tell("decoding", report.decoded, total)
    if bad:
        report.wrong(f"{len(bad):,} of {total:,} images cannot be read", bad)
    _check_equal(name, dataset, digests, report)


def _in_order(pool: ThreadPoolExecutor, images: ImageList, ahead: int) -> Iterator[list[bytes | str]]:
    """Digests, or what is wrong, chunk by chunk; a bounded number of chunks is under way."""

    def digest(start: int) -> list[bytes | str]:
        return [_digest(images, row) for row in range(start, min(start + _CHUNK, len(images)))]

    starts = iter(range(0, len(images), _CHUNK))
    waiting = deque(pool.submit(digest, start) for start in islice(starts, ahead))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(digest, start) for start in islice(starts, 1))
    finally:  # Ctrl-C does not wait for what nobody reads
        for future in waiting:
            future.cancel()


def _digest(images: ImageList, row: int) -> bytes | str:
    try:
        image = images.read(row)
    except BadImage as error:
        return str(error)
    head = f"{image.width}x{image.height} ".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=_DIGEST).digest()


def _check_equal(name: str, dataset: Dataset, digests: Mapping[str, Sequence[bytes | None]], report: Report) -> None:
    """Equal images in two splits, which make a test easier than it seems, and within one. In published splits that is to know: nobody is
    meant to mend them."""
    user_made = name not in FACTS or _FOLDERS in dataset.note
    single = {samples.images for samples in dataset.samples.values() if len(samples) == len(samples.row_values)}
    for i, (first, codes) in enumerate(digests.items()):
        rows = {code: row for row, code in reversed([*enumerate(codes)]) if code is not None}
        repeated = sum(code is not None for code in codes) - len(rows)
        if repeated and first in single:  # frames of a clip may well be equal
            report.know(f"{repeated:,} images of {first} are there more than once in {first}")
        for second in list(digests)[i + 1 :]:
            pairs = [(rows[code], row) for row, code in enumerate(digests[second]) if code in rows]
            if pairs:
                names = [f"{dataset.lists[first].ids[a]} = {dataset.lists[second].ids[b]}" for a, b in pairs[:_NAMED]]
                tell = report.wrong if user_made else report.know
                published = "" if user_made else " (in the published data)"
                tell(f"{len(pairs):,} images of {second} are in {first}, too{published}", names)


def finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """For people: what is wrong first."""
    for finding in sorted(findings, key=lambda finding: not finding.wrong):
        yield f"{'wrong' if finding.wrong else 'note '}  {finding.text.replace(chr(10), chr(10) + ' ' * 7)}"
        for name in finding.names:
            yield f"         {name}"

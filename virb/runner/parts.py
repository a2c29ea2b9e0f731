"""Where the parts of a job that several devices share leave what they found, and the record of who did what."""

from __future__ import annotations

from pathlib import Path

from virb.io import make_folder, read_json, write_json
from virb.plan.jobs import Job
from virb.probes.pieces import WHOLE, KeptPieces, Part, Pieces
from virb.results.schema import JobPart


def job_folder(out: Path, job: Job) -> Path:
    """What a job keeps until it is done: training states, and the pieces that its parts found."""
    return make_folder(out / ".jobs" / job.encoder / job.label / job.key[:16])


def part_folder(folder: Path, part: Part) -> Path:
    """For training states of one part."""
    return make_folder(folder / f"{part.stage}-{part.number + 1}-of-{part.count}")


def pieces_of(folder: Path, part: Part | None = None) -> Pieces:
    """Of a part; or of the job itself, which needs none where nobody found any."""
    place = folder / "pieces"
    return KeptPieces(make_folder(place), part) if part is not None or place.is_dir() else WHOLE


def _record(folder: Path, part: Part) -> Path:
    return folder / "parts" / f"{part.stage}-{part.number + 1}-of-{part.count}.json"


def is_done(folder: Path, part: Part) -> bool:
    return _record(folder, part).exists()


def write_part(folder: Path, part: Part, device: str, seconds: float, finished: str) -> None:
    record = JobPart(stage=part.stage, number=part.number + 1, of=part.count, device=device, seconds=round(seconds, 3), finished=finished)
    make_folder(folder / "parts")
    write_json(_record(folder, part), record.model_dump(mode="json"))


def read_parts(folder: Path) -> list[JobPart]:
    """In the order in which they ended."""
    found = [JobPart.model_validate(read_json(path)) for path in sorted((folder / "parts").glob("*.json"))]
    return sorted(found, key=lambda part: part.finished)

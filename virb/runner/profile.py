"""Where a run's time went: seconds of its workers by stage, and which side was the slower where images are encoded.

Passes and streams tell their stages (``PassReport.seconds``), jobs theirs (``JobFacts.timings``), the launcher how long each worker was at
work. Units that failed or were interrupted count too.
What goes on in the background while the worker does something else is no time of the run: a loader whose threads keep up costs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from virb.plan.graph import UnitReport

# In the order of the table. "decode" is waiting for images, "transfer" for their way to the device; "other" is loading encoders, starting
# workers and all that no stage is named for.
STAGES = {
    "decode": "waiting for images",
    "transfer": "moving them to the device, while encoders are at work",
    "compile": "compiling encoders",
    "encode": "running encoders",
    "write": "waiting for features to be written",
    "read": "reading features",
    "head": "training and applying heads",
    "metrics": "scoring, with intervals",
    "results": "writing results",
}
BACKGROUND = ("transfer",)  # goes on while encoders are at work
_OF_TIMINGS = {"read features": "read", "probe": "head", "metrics": "metrics"}


@dataclass
class Rates:
    """What the loader and the encoders would do if each had nothing to wait for: of all passes and streams that came to their end."""

    rows: int = 0
    loading: float = 0.0  # seconds of the loader itself, also in the background
    computing: float = 0.0  # of the encoders themselves, also while the worker waits for images

    def add(self, report: UnitReport) -> None:
        rows = report.counts.get("rows", 0) + report.counts.get("streamed", 0)
        loading, computing = report.seconds.get("load", 0.0), report.seconds.get("compute", 0.0)
        if rows and computing:  # else no encoder was at work, or what it took is not known yet
            self.rows, self.loading, self.computing = self.rows + rows, self.loading + loading, self.computing + computing

    def loader(self, workers: int) -> float | None:
        """Images a second."""
        return self.rows * workers / self.loading if self.loading else None

    def encoders(self, workers: int) -> float | None:
        return self.rows * workers / self.computing if self.computing else None

    @property
    def bound(self) -> str | None:
        """Which side is the slower; None when no image was encoded."""
        if not self.loading or not self.computing:
            return None
        return "loader-bound" if self.loading > self.computing else "encoder-bound"


@dataclass(frozen=True)
class Profile:
    wall: float  # seconds from the first unit to the last
    workers: tuple[str, ...]
    busy: tuple[float, ...]  # seconds, by worker
    stages: dict[str, float] = field(default_factory=dict)  # seconds, of all workers together
    rates: Rates = field(default_factory=Rates)

    @property
    def idle(self) -> float:
        return sum(max(0.0, self.wall - busy) for busy in self.busy)

    @property
    def other(self) -> float:
        return max(0.0, sum(self.busy) - sum(value for stage, value in self.stages.items() if stage not in BACKGROUND))

    @property
    def bound(self) -> str | None:
        return self.rates.bound

    @property
    def loader_rate(self) -> float | None:
        """Images a second of all workers, if nothing else were to be done."""
        return self.rates.loader(len(self.workers))

    @property
    def encoder_rate(self) -> float | None:
        return self.rates.encoders(len(self.workers))


def job_seconds(
    timings: Iterable[Any], whole: float | None, streamed: Mapping[str, float] | None = None, made: Mapping[str, float] | None = None
) -> dict[str, float]:
    """A job's seconds by stage from its timings (stage, seconds); what they leave of ``whole`` is writing results. ``streamed``: those of
    its streams, which decode and encode while heads train: that part is not the heads'. ``made``: those of features that were made again
    while features were read."""
    seconds: dict[str, float] = {}
    for timing in timings:
        stage = _OF_TIMINGS.get(timing.stage)
        if stage is not None:
            seconds[stage] = seconds.get(stage, 0.0) + timing.seconds
    streamed = streamed or {}
    between = stream_seconds(streamed)
    if between:
        seconds["head"] = max(0.0, seconds.get("head", 0.0) - between)
    made = made or {}
    making = stream_seconds(made)
    if making:
        seconds["read"] = max(0.0, seconds.get("read", 0.0) - making)
    if whole is not None:
        seconds["results"] = max(0.0, whole - sum(seconds.values()) - between - making)
    for stage, value in (*streamed.items(), *made.items()):
        if value:
            seconds[stage] = seconds.get(stage, 0.0) + value
    return seconds


def stream_seconds(streamed: Mapping[str, float]) -> float:
    """What streams took of their job's time."""
    return sum(value for stage, value in streamed.items() if stage in STAGES and stage not in BACKGROUND)


def make_profile(reports: Iterable[UnitReport], workers: Sequence[str], busy: Sequence[float], wall: float) -> Profile:
    stages: dict[str, float] = {}
    rates = Rates()
    for report in reports:
        rates.add(report)
        for stage, value in report.seconds.items():
            if stage in STAGES:
                stages[stage] = stages.get(stage, 0.0) + value
    return Profile(
        wall=wall,
        workers=tuple(workers),
        busy=tuple(busy),
        stages=stages,
        rates=rates,
    )


def profile_record(profile: Profile) -> dict[str, Any]:
    """For ``runs/<time>.json``."""

    def rate(value: float | None) -> float | None:
        return None if value is None else round(value, 1)

    return {
        "wall_seconds": round(profile.wall, 3),
        "worker_seconds": {
            **{stage: round(profile.stages[stage], 3) for stage in STAGES if stage in profile.stages},
            "other": round(profile.other, 3),
            "idle": round(profile.idle, 3),
        },
        "workers": [
            {"name": name, "busy_seconds": round(busy, 3), "idle_seconds": round(max(0.0, profile.wall - busy), 3)}
            for name, busy in zip(profile.workers, profile.busy, strict=True)
        ],
        "bound": profile.bound,
        "loader_images_per_second": rate(profile.loader_rate),
        "encoder_images_per_second": rate(profile.encoder_rate),
    }


def bound_line(profile: Profile) -> str | None:
    """``loader-bound: the loader gives 812 img/s, the encoders take 5,210 img/s``; None when no image was encoded."""
    if profile.bound is None:
        return None
    return f"{profile.bound}: the loader gives {profile.loader_rate:,.0f} img/s, the encoders take {profile.encoder_rate:,.0f} img/s"


def profile_lines(profile: Profile) -> Iterator[str]:
    """The table of ``--profile``."""
    total = profile.wall * len(profile.workers)
    rows = [(stage, profile.stages[stage], text) for stage, text in STAGES.items() if stage in profile.stages]
    rows += [("other", profile.other, "loading encoders, starting workers"), ("idle", profile.idle, _idle_text(profile))]
    yield f"{profile.wall:.1f} s on {len(profile.workers)} worker{'s' * (len(profile.workers) != 1)}"
    for name, seconds, text in rows:
        yield f"  {name:<9} {seconds:9.1f} s {100 * seconds / total if total else 0.0:5.1f} %   {text}"
    if line := bound_line(profile):
        yield f"  {line}"


def _idle_text(profile: Profile) -> str:
    if len(profile.workers) == 1:
        return "between units of work"
    each = (f"{name} {max(0.0, profile.wall - busy):.1f} s" for name, busy in zip(profile.workers, profile.busy, strict=True))
    return f"waiting for others: {', '.join(each)}"

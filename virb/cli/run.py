"""``virb run`` and ``virb check``: the files are read, everything is checked, and then it is run, or shown."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virb.cli.console import note, say, stdout
from virb.errors import ConfigError, Problem

if TYPE_CHECKING:
    from virb.config import EncoderConfig, TaskConfig
    from virb.encoders.verify import Failed, Verified
    from virb.plan.jobs import Draft, Plan
    from virb.transfer import Progress


def run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return check(options)

    from virb.plan.budget import refuse_what_lacks
    from virb.plan.describe import header
    from virb.runner.profile import bound_line, profile_lines
    from virb.runner.run import claim_if_writable, execute, heads_not_kept, nothing_to_do, planned

    console = stdout()
    draft, texts = make_draft(options, console)
    refuse_what_lacks(draft)
    with claim_if_writable(draft.settings.out) as lease, planned(draft) as (plan, use):
        # Planned under the lease, so that what is done already is known for certain.
        if not plan.to_do:
            nothing_to_do(plan)
            where = f"({draft.settings.out}, {_age(draft.settings.out, plan)}) · --force runs"
            several = len(plan.jobs) > 1
            say(f"all {len(plan.jobs):,} jobs are done {where} them again" if several else f"the job is done {where} it again", console)
            for line in _about_heads(heads_not_kept(plan)):
                say(line, console)
            return 0
        for line in [*header(plan), *_about_heads(heads_not_kept(plan))]:
            say(line, console)
        say(console=console)
        summary = execute(plan, console, texts, lease, use)
    if summary.profile and not options.profile and (bound := bound_line(summary.profile)):
        say(f"encoding was {bound}", console)
    if summary.refused:
        say(f"{summary.refused:,} of {summary.decoded:,} images were decoded by Pillow: no JPEG, or one that simplejpeg refuses", console)
    _print_results(console, plan)
    if options.profile and summary.profile:
        say(console=console)
        for line in profile_lines(summary.profile):
            say(line, console)
    for line in failure_lines(summary.failed, len(summary.done), len(plan.jobs)):
        say(line, console)
    return summary.exit_code


def _about_heads(n_jobs: int) -> list[str]:
    return [f"heads of {n_jobs:,} finished job{'s' * (n_jobs > 1)} were not kept; --force trains them"] if n_jobs else []


def check(options: argparse.Namespace) -> int:
    from virb.encoders.verify import Failed
    from virb.plan.budget import refuse_what_lacks
    from virb.plan.describe import check_report, encoder_report
    from virb.plan.units import assemble

    console = stdout()
    encoders: list[Verified | Failed] = []
    try:
        draft, _ = make_draft(options, console, on_encoder=encoders.append)
        refuse_what_lacks(draft)
    except ConfigError as error:
        if options.debug:
            raise
        for line in encoder_report(encoders) if any(isinstance(encoder, Failed) for encoder in encoders) else ():
            say(line, console)
        print(f"{error}\nnothing was run", file=sys.stderr)
        return 2
    for line in check_report(assemble(draft), encoders) if options.task_configs else encoder_report(encoders):
        say(line, console)
    say("nothing was run", console)
    return 0


def make_draft(
    options: argparse.Namespace, console: Any, on_encoder: Callable[[Verified | Failed], None] | None = None
) -> tuple[Draft, Mapping[str, str]]:
    """Reads the files and checks everything; every mistake in all of them is reported at once, and nothing is written."""
    from virb.plan.build import draft_plan
    from virb.runner.settings import make_settings

    checking = on_encoder is not None
    encoders_alone = checking and not options.task_configs and bool(options.experiment_list or options.name)
    problems: list[Problem] = _missing_options(options, tasks_needed=not encoders_alone)
    settings = make_settings({**vars(options), "command": options.command_line}, problems)
    files = _read(options, settings.protocol, problems)
    with console.status("planning") if console.is_terminal else nullcontext() as status:
        tell = status.update if status else _no_one
        downloads = _Downloads(tell if status else partial(say, console=console), 0.2 if status else 10.0)
        tasks = None if encoders_alone else files.tasks
        draft = draft_plan(
            settings, files.encoders, tasks, problems, texts=files.texts, tell=tell, on_encoder=on_encoder, on_download=downloads
        )
        return draft, files.texts


def _no_one(text: str) -> None: ...


class _Downloads:
    """Tells how far a download of weights is, now and then, with the time left."""

    def __init__(self, tell: Callable[[str], None], every: float) -> None:
        self._tell, self._every = tell, every
        self._url, self._began, self._first, self._last = "", 0.0, 0, 0.0

    def __call__(self, state: Progress) -> None:
        from virb.plan.describe import size_text

        now = time.monotonic()
        if state.url != self._url:
            self._url, self._began, self._first, self._last = state.url, now, state.done, 0.0
        if now - self._last < self._every and not state.finished:
            return
        self._last = now
        rate = (state.done - self._first) / max(now - self._began, 1e-3)
        left = f"   left about {(state.total - state.done) / rate:.0f} s" if state.total and rate and not state.finished else ""
        total = f"/{size_text(state.total)}" if state.total else ""
        self._tell(f"downloading {state.path}   {size_text(state.done)}{total}   {size_text(rate)}/s{left}")


@dataclass(frozen=True)
class _Files:
    encoders: list[EncoderConfig]
    tasks: list[TaskConfig]
    texts: Mapping[str, str]


def _read(options: argparse.Namespace, protocol: str | None, problems: list[Problem]) -> _Files:
    from virb.config import Loaded, encoder_from_arguments, load_experiment_list, load_task_configs, only
    from virb.encoders.load import encoder_names
    from virb.tasks.vocabulary import TaskVocabulary

    words = TaskVocabulary(encoder_names())
    encoders: Loaded[EncoderConfig] = Loaded(())
    if options.experiment_list:
        # With --only, the weights of the others may be missing; those that are left are read while planning.
        encoders = load_experiment_list(options.experiment_list, words, check_paths=not options.only)
    elif options.name:
        encoders = encoder_from_arguments(options.name, options.encoder_weights, words)
    tasks: Loaded[TaskConfig] = Loaded(())
    if options.task_configs:
        tasks = load_task_configs(options.task_configs, words, protocol=protocol)
    for warning in (*encoders.warnings, *tasks.warnings):
        note(str(warning))
    problems += [*encoders.problems, *tasks.problems]
    kept_encoders, no_encoder = only(encoders.items, options.only, option="--only")
    kept_tasks, no_task = only(tasks.items, options.tasks, option="--tasks")
    # A name that was not understood is reported above; that no glob matches it would be said in vain.
    problems += [*(() if encoders.problems else no_encoder), *(() if tasks.problems else no_task)]
    named = [item.model_copy(update={"name": f"{item.name}{options.suffix}"}) for item in kept_encoders]
    return _Files(named, list(kept_tasks), {**encoders.texts, **tasks.texts})


def _missing_options(options: argparse.Namespace, tasks_needed: bool) -> list[Problem]:
    found = []
    if options.experiment_list and options.name:
        found.append(("--name", "is for a single encoder; leave it out, or --experiment_list"))
    if options.encoder_weights and not options.name:
        found.append(("--encoder_weights", "needs --name, the name of the encoder in the results"))
    if not options.experiment_list and not options.name:
        found.append(("--experiment_list", "is missing: which encoders? (a YAML file, or --name and --encoder_weights)"))
    if tasks_needed and not options.task_configs:
        found.append(("--task_configs", "is missing: which tasks? (a YAML file such as configs/task_configs/quickstart.yaml)"))
    return [Problem("command line", 0, flag, message) for flag, message in found]


def _age(out: Path, plan: Plan) -> str:
    newest = max((out / job.encoder / job.label / "job.json").stat().st_mtime for job in plan.done)
    seconds = max(0.0, time.time() - newest)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "just now"


def _print_results(console: Any, plan: Plan) -> None:
    from virb.results.load import load_results
    from virb.results.tables import footnotes, text_table

    encoders = list(dict.fromkeys(job.encoder for job in plan.jobs))
    labels = list(dict.fromkeys(job.label for job in plan.jobs))
    table = load_results(plan.settings.out)
    table = table[table["encoder"].isin(encoders) & table["label"].isin(labels)]
    if not len(table):
        return
    say(console=console)
    for line in text_table(table, encoders, labels):
        say(line, console)
    say(f"95 % intervals · {footnotes(table)} · results: {plan.settings.out / 'results.csv'}", console)


def failure_lines(failed: Mapping[str, str], done: int, total: int) -> list[str]:
    """The table of failures, the last thing a run prints."""
    if not failed:
        return []
    width = max(len(name) for name in failed)
    lines = ["", f"{len(failed)} of {total} jobs failed, {done} done:"]
    lines += [f"  {name.replace('/', ' x ', 1):<{width + 2}}  {(reason.splitlines() or ['?'])[0]}" for name, reason in failed.items()]
    return [*lines, "what failed runs again with the same command; reasons in full: failed.json of each"]

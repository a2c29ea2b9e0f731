"""The command line. Each command imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import virb
from virb.errors import ConfigError, Problem, UserError, ViRBError

if TYPE_CHECKING:
    from virb.config import EncoderConfig, TaskConfig
    from virb.plan.jobs import Plan, RunSettings

COMMANDS = ("run", "check", "list", "show")
EXAMPLES = """examples:
  virb run   --experiment_list configs/experiment_lists/quickstart.yaml --task_configs configs/task_configs/quickstart.yaml
  virb check --experiment_list lists/ --task_configs configs/task_configs/quickstart.yaml     plan and verify, run nothing
  virb run   --name mine --encoder_weights weights/mine.pth --task_configs tasks.yaml --devices cuda:0,cuda:1
  virb list tasks                                  what there is
  virb show digits                                 a task, resolved, with where each value came from
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every job succeeded, 1 when one failed, 2 for mistakes in the input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_help = arguments[:1] in (["-h"], ["--help"], ["--version"])
    if not arguments or (arguments[0] not in COMMANDS and arguments[0].startswith("-") and not wants_help):
        arguments.insert(0, "run")
    options = _parser().parse_args(arguments)
    options.command_line = tuple(arguments)
    try:
        return int(options.call(options))
    except ViRBError as error:
        if options.debug:
            raise
        print(f"virb: {error}" if not isinstance(error, ConfigError) else str(error), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("\nstopped; finished jobs are kept, the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="virb",
        description="ViRB: what do frozen visual encoders know?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ViRB {virb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    run = commands.add_parser(
        "run",
        help="run an experiment list on task configs (the default command)",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _run_options(run)
    run.add_argument("--dry_run", action="store_true", help="plan and verify only, like virb check")
    run.set_defaults(call=_run)
    check = commands.add_parser("check", help="plan and verify everything, run nothing")
    _run_options(check)
    check.set_defaults(call=_check)
    listing = commands.add_parser("list", help="what there is: tasks, encoders, datasets or probes")
    listing.add_argument("what", choices=("tasks", "encoders", "datasets", "probes"))
    listing.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    listing.set_defaults(call=_list)
    show = commands.add_parser("show", help="a task with all its settings and where each came from")
    show.add_argument("task", help="a task id, or a label of --task_configs")
    show.add_argument(
        "--task_configs", "--virb_configs", nargs="+", type=Path, default=[], metavar="YAML", help="files or folders that have the label"
    )
    show.add_argument("--protocol", help="as for virb run")
    show.add_argument("--debug", action="store_true", help="show tracebacks")
    show.set_defaults(call=_show)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to run")
    what.add_argument("--experiment_list", nargs="+", type=Path, default=[], metavar="YAML", help="encoders: one or more files or folders")
    what.add_argument(
        "--task_configs", "--virb_configs", nargs="+", type=Path, default=[], metavar="YAML", help="tasks: one or more files or folders"
    )
    what.add_argument("--name", help="a single encoder instead of a list: its name")
    what.add_argument("--encoder_weights", metavar="PATH", help="its weights; none means torchvision's supervised ResNet-50")
    what.add_argument("--suffix", default="", help="appended to every encoder's name")
    what.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="only these encoders: 'DINO*'")
    what.add_argument("--tasks", nargs="+", default=[], metavar="GLOB", help="only these task labels: 'NYU*,Pets'")
    how = parser.add_argument_group("what decides the numbers")
    how.add_argument("--protocol", help="a named bundle of settings for all tasks: default, virb2021")
    how.add_argument("--input_size", type=int, metavar="PIXELS", help="for all encoders, before anything else that says a size")
    how.add_argument("--precision", default="auto", help="auto (fp32 on CPUs, bf16 on GPUs), fp32, bf16 or fp16")
    how.add_argument("--seed", type=int, default=0, help="of heads, order, augmentation and random encoders (default 0)")
    where = parser.add_argument_group("where and how")
    where.add_argument("--out", type=Path, default=Path("out"), help="results folder, added to by every run (default: out)")
    where.add_argument("--data_root", type=Path, default=Path("data"), help="where datasets lie (default: data)")
    where.add_argument("--devices", default="auto", help="auto, cpu, cpu:4, cuda:0,cuda:2")
    where.add_argument("--num_workers", type=int, metavar="N", help="threads per device that decode images ahead")
    where.add_argument("--cache_dir", type=Path, help="feature cache (default: .virb_cache in the data root, else below --out)")
    where.add_argument(
        "--cache_budget", default="80%", help="how much of the disk it may take: 80%% (of what is free), 200GB, 0 (encode while training)"
    )
    where.add_argument("--no_cache", action="store_true", help="keep features in a scratch folder that goes with the run")
    where.add_argument("--keep_heads", choices=("chosen", "all", "none"), default="chosen", help="which heads to save (default: chosen)")
    where.add_argument("--force", action="store_true", help="run finished jobs again")
    where.add_argument("--debug", action="store_true", help="show tracebacks")


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    if options.dry_run:
        return _check(options)
    console = Console(highlight=False)
    from virb.plan.describe import header, many
    from virb.runner.run import claim, execute, nothing_to_do

    settings = _settings(options)
    with claim(settings.out) as lease:
        plan, texts = _plan(options, settings, console)
        if not plan.to_do:
            nothing_to_do(plan)
            _say(
                console,
                f"all {many(len(plan.jobs), 'job')} are done ({settings.out}, {_age(settings.out, plan)}) · --force runs them again",
            )
            return 0
        for line in header(plan):
            _say(console, line)
        _say(console, "")
        summary = execute(plan, console, texts, lease)
    _print_results(console, plan)
    for line in failure_lines(summary.failed, len(summary.done), len(plan.jobs)):
        _say(console, line)
    return summary.exit_code


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console

    from virb.plan.describe import check_report

    console = Console(highlight=False)
    plan, _ = _plan(options, _settings(options), console)
    for line in check_report(plan):
        _say(console, line)
    _say(console, "nothing was run")
    return 0


def _settings(options: argparse.Namespace) -> RunSettings:
    problems = []
    if options.num_workers is not None and options.num_workers < 0:
        problems.append(Problem("command line", 0, "--num_workers", f"{options.num_workers} is less than 0"))
    if options.input_size is not None and options.input_size < 1:
        problems.append(Problem("command line", 0, "--input_size", f"{options.input_size} is no size in pixels"))
    if options.seed < 0:
        problems.append(Problem("command line", 0, "--seed", f"{options.seed} is less than 0"))
    if problems:
        raise ConfigError(problems)

    from virb.plan.jobs import RunSettings
    from virb.plan.units import parse_budget
    from virb.runner.devices import parse_devices, resolve_precision

    parse_budget(options.cache_budget, options.out)
    devices = parse_devices(options.devices)
    return RunSettings(
        out=options.out,
        data_root=options.data_root,
        cache_dir=options.cache_dir,
        cache_budget=options.cache_budget,
        no_cache=options.no_cache,
        devices=devices,
        precision=resolve_precision(options.precision, devices[0]),
        input_size=options.input_size,
        protocol=options.protocol,
        num_workers=options.num_workers,
        force=options.force,
        seed=options.seed,
        keep_heads=options.keep_heads,
        command=options.command_line,
    )


def _plan(options: argparse.Namespace, settings: RunSettings, console: Any) -> tuple[Plan, dict[str, str]]:
    """Reads the files and plans; every mistake in all of them is reported at once."""
    from virb.plan.build import build_plan

    encoders, tasks, problems, texts = _load(options, console)
    with console.status("planning") if console.is_terminal else _Silent() as status:
        plan = build_plan(settings, encoders, tasks, problems, tell=status.update)
    return plan, texts


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, text: str) -> None: ...


def _load(options: argparse.Namespace, console: Any) -> tuple[list[EncoderConfig], list[TaskConfig], list[Problem], dict[str, str]]:
    from virb.config import encoder_from_arguments, load_experiment_list, load_task_configs, only
    from virb.encoders.load import encoder_names
    from virb.tasks.protocols import PROTOCOLS
    from virb.tasks.resolve import TaskVocabulary

    problems: list[Problem] = []
    words = TaskVocabulary(encoder_names())
    if options.protocol is not None and options.protocol not in PROTOCOLS:
        problems.append(
            Problem("command line", 0, "--protocol", f"no protocol {options.protocol!r}; there are {', '.join(sorted(PROTOCOLS))}")
        )
        options.protocol = None
    if options.experiment_list and options.name:
        problems.append(Problem("command line", 0, "--name", "is for a single encoder; leave it out, or --experiment_list"))
    if options.encoder_weights and not options.name:
        problems.append(Problem("command line", 0, "--encoder_weights", "needs --name, the name of the encoder in the results"))
    if not options.experiment_list and not options.name:
        problems.append(
            Problem("command line", 0, "--experiment_list", "is missing: which encoders? (a YAML file, or --name and --encoder_weights)")
        )
    if not options.task_configs:
        problems.append(
            Problem(
                "command line", 0, "--task_configs", "is missing: which tasks? (a YAML file such as configs/task_configs/quickstart.yaml)"
            )
        )
    found = load_experiment_list(options.experiment_list, words) if options.experiment_list else None
    if found is None and options.name:
        found = encoder_from_arguments(options.name, options.encoder_weights, words)
    tasks = load_task_configs(options.task_configs, words, protocol=options.protocol) if options.task_configs else None
    encoder_items, more = only(found.items if found else (), options.only, option="--only")
    task_items, others = only(tasks.items if tasks else (), options.tasks, option="--tasks")
    for loaded in (found, tasks):
        if loaded is not None:
            problems += loaded.problems
            for warning in loaded.warnings:
                _say(console, f"note: {warning}")
    problems += [*more, *others] if not problems else []
    encoders = [item.model_copy(update={"name": f"{item.name}{options.suffix}"}) for item in encoder_items]
    texts = {**(found.texts if found else {}), **(tasks.texts if tasks else {})}
    return encoders, list(task_items), problems, texts


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    for line in _listing(options.what):
        _say(console, line)
    return 0


def _listing(what: str) -> list[str]:
    if what == "encoders":
        from virb.encoders.load import encoder_names

        return [*encoder_names(), "", "and timm:NAME, module: package.module:Class, or a path to weights"]
    if what == "datasets":
        from virb.data.datasets import dataset_names

        return list(dataset_names())
    if what == "probes":
        from virb.probes.base import find_probe, probe_names

        return [f"{name:<12} {(find_probe(name).__doc__ or '').strip().splitlines()[0]}" for name in probe_names()]
    from virb.tasks.base import all_tasks

    lines = []
    for task in sorted(all_tasks().values(), key=lambda t: (not t.available, t.level, t.kind, t.id)):
        state = f"{task.probe:<8} {', '.join(task.metrics):<32} {task.about}" if task.available else "not available yet"
        lines.append(f"{task.id:<30} {task.level:<12} {task.kind:<11} {state}".rstrip())
    return lines


def _show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from virb.config import load_task_configs, task_config_from_mapping
    from virb.encoders.load import encoder_names
    from virb.tasks.base import all_tasks
    from virb.tasks.protocols import PROTOCOLS
    from virb.tasks.resolve import TaskVocabulary, canonical, resolve_task

    words = TaskVocabulary(encoder_names())
    if options.protocol is not None and options.protocol not in PROTOCOLS:
        raise UserError(f"--protocol: no protocol {options.protocol!r}; there are {', '.join(sorted(PROTOCOLS))}")
    if options.task_configs:
        items = {item.label: item for item in load_task_configs(options.task_configs, words, protocol=options.protocol).checked()}
        if options.task not in items:
            raise UserError(f"no label {options.task!r} in {', '.join(map(str, options.task_configs))}; there are {', '.join(items)}")
        config = items[options.task]
    else:
        if not words.has_task(options.task):
            from difflib import get_close_matches

            near = get_close_matches(options.task, list(all_tasks()), n=1)
            raise UserError(f"no task {options.task!r}" + (f"; did you mean {near[0]}?" if near else "; virb list tasks shows them all"))
        config = task_config_from_mapping(options.task.rpartition(":")[2], {"task": options.task}, words, protocol=options.protocol)
    console = Console(highlight=False)
    for task in resolve_task(config, options.protocol):
        _say(
            console,
            f"{task.label}: task {task.task.id} ({task.task.level}, {task.task.kind}), {task.task.about or 'dataset ' + task.task.dataset}",
        )
        if not task.task.available:
            _say(console, "  not available yet")
            continue
        rows = {
            "protocol": task.protocol,
            "dataset": task.task.dataset,
            "target": task.task.target,
            "roles": dict(task.task.roles),
            "data": dict(task.data),
        }
        rows |= {
            key: getattr(task, key) for key in ("features", "probe", "num_epochs", "batch_size", "test_batch_size", "selection", "seeds")
        }
        rows |= {key: getattr(task, key) for key in ("refit", "views", "augment", "on_bad_image")}
        rows |= {
            "geometry": task.geometry.record() if task.geometry else "the encoder's own",
            "metrics": ", ".join(task.task.metrics),
            "loss": task.task.loss,
        }
        for key, value in rows.items():
            _say(console, f"  {key:<16} {value!s:<60} {task.origins.get(key, f'task {task.task.id}')}")
        _say(console, f"  {'training_configs':<16} {len(task.configs)} {'':<58} {task.origins.get('training_configs', '')}")
        for name, training in task.configs.items():
            _say(console, f"    {name}: " + ", ".join(f"{key} {value}" for key, value in canonical(training).items() if value is not None))
        if task.changed:
            _say(console, f"  changed from {task.protocol}: {dict(task.changed)}")
    return 0


def _age(out: Path, plan: Plan) -> str:
    import time

    newest = max((out / job.encoder / job.label / "job.json").stat().st_mtime for job in plan.done)
    seconds = max(0.0, time.time() - newest)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "just now"


def _print_results(console: Any, plan: Plan) -> None:
    from virb.results.load import load_results
    from virb.results.tables import text_table

    encoders = list(dict.fromkeys(job.encoder for job in plan.jobs))
    labels = list(dict.fromkeys(job.label for job in plan.jobs))
    table = load_results(plan.settings.out)
    table = table[table["encoder"].isin(encoders) & table["label"].isin(labels)]
    if not len(table):
        return
    _say(console, "")
    for line in text_table(table, encoders, labels):
        _say(console, line)
    selections = {job.task.selection for job in plan.jobs}
    choices = {"val": "choices made on validation", "test-last": "last epoch, choices made on test", "test-best": "choices made on test"}
    _say(console, f"95 % intervals · {', '.join(sorted(choices[s] for s in selections))} · results: {plan.settings.out / 'results.csv'}")


def failure_lines(failed: dict[str, str], done: int, total: int) -> list[str]:
    """The table of failures, the last thing a run prints."""
    if not failed:
        return []
    width = max(len(name) for name in failed)
    lines = ["", f"{len(failed)} of {total} jobs failed, {done} done:"]
    lines += [f"  {name.replace('/', ' x ', 1):<{width + 2}}  {reason.splitlines()[0]}" for name, reason in failed.items()]
    return [*lines, "what failed runs again with the same command; reasons in full: job.json of each"]


def _say(console: Any, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)

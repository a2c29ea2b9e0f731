"""``virb pretrain METHOD``: flags are made from the method's keys; torch is imported when the training starts."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virb.cli.console import note, say, stdout
from virb.cli.parser import ABOUT, UsageError, make_subparser
from virb.errors import UserError, ViRBError

if TYPE_CHECKING:
    from virb.pretraining.distributed import Ranks
    from virb.pretraining.loading import ViewSource
    from virb.pretraining.options import EngineOptions, Given, KeyHelp

EXAMPLES = """examples:
  virb pretrain dino --config configs/pretraining/dino_tiny_cpu.yaml           (results: runs/dino_tiny_cpu)
  virb pretrain dino --config configs/pretraining/dino_vits16_100ep.yaml --data_path /data/imagenet/train --output_dir runs/1
  torchrun --nproc_per_node 8 main.py pretrain dino --config ...
  virb pretrain dino --config ... --output_dir 'runs/%j' --launcher slurm --nodes 2 --ngpus 8 --partition gpu
  virb pretrain dino --help
"""
_HEADINGS = {
    "data": "data and output",
    "training": "training",
    "device": "devices and precision",
    "checkpoints": "checkpoints",
    "monitoring": "monitoring",
    "slurm": "slurm",
}
# A probe ends with the training: it would be in the way of the one that goes on.
_CHILD = """import os, sys
from virb.cli import main
from virb.processes import when_parent_ends
when_parent_ends(lambda: os._exit(1), parent=int(sys.argv.pop(1)))
sys.exit(main())"""
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK")


def pretrain(arguments: Sequence[str]) -> int:
    """``arguments``: those after ``pretrain``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        _overview().parse_args(["--help"])  # prints, and leaves
    if arguments[0].startswith("-"):
        raise UsageError(f"virb pretrain: name the method first: virb pretrain METHOD {arguments[0]} ... (methods: {', '.join(_names())})")
    from virb.pretraining.catalogue import option_sources
    from virb.pretraining.options import from_flags, make_options, options_of, plain, read_config
    from virb.pretraining.unused import unused

    source = option_sources(arguments[0])
    record = options_of(source)
    given = vars(method_parser(source.name).parse_args([_flag(argument) for argument in arguments[1:]]))
    config: Path | None = given.pop("config", None)
    for name in ("parser", "debug"):
        given.pop(name, None)
    from_file, facts = read_config(config) if config is not None else ({}, {})
    texts = {name: [value] if isinstance(value, str) else value for name, value in given.items()}
    from_file, unknown = _known(from_file, record, source.aliases)
    from_line = from_flags(record, texts, source.aliases)
    recipe = config.stem if config is not None else ""
    options = _placed(make_options(source, from_file, from_line), recipe or source.name.rpartition(":")[2])
    if os.environ.get("RANK", "0") == "0":
        if unknown:
            note(f"{config}: not options of {source.name}, left out: {', '.join(unknown)}")
        for line in unused(options, from_file, from_line, aliases=source.aliases):
            note(line)
        _compare_world(facts, options)
    if options.launcher == "slurm":
        from virb.pretraining.launch import Task, check_before, submit

        for line in check_before(options, source.name):
            note(line)
        if options.probe:
            check_probe(Path(options.probe))
        job, folder = submit(options, Task(train_from, source.name, plain(options), recipe))
        say(f"job {job} submitted; its output: {folder}/{job}_0_log.out; results: {options.output_dir.replace('%j', job)}")
        return 0
    return _train(source.name, options, recipe, keep_going_on_term=False)


def _placed(options: EngineOptions, name: str) -> EngineOptions:
    """With the names in place of ``%r`` and ``%j`` in output_dir; a job of ``--launcher slurm`` knows its number only when it runs."""
    folder = options.output_dir.replace("%r", name)
    if "%j" in folder and options.launcher != "slurm":
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise UserError(f"output_dir {folder}: %j is a Slurm job's number, and this is none; name a folder, or add --launcher slurm")
        folder = folder.replace("%j", job)
    return options.model_copy(update={"output_dir": folder})


def train_from(method: str, values: Mapping[str, Any], recipe: str, keep_going_on_term: bool) -> int:
    """A training from plain values: what a Slurm task runs. Errors have been told when it returns."""
    from virb.config import Where
    from virb.pretraining.catalogue import option_sources
    from virb.pretraining.options import Given, make_options

    try:
        options = make_options(option_sources(method), {name: Given(value, Where("<job>", 0, name)) for name, value in values.items()})
        return _train(method, options, recipe, keep_going_on_term)
    except ViRBError as error:
        print(f"virb: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UserError) else 1


def _train(method_name: str, options: EngineOptions, recipe: str, keep_going_on_term: bool) -> int:
    from virb.pretraining.catalogue import load_method
    from virb.pretraining.data import open_source
    from virb.pretraining.distributed import join
    from virb.pretraining.engine import train

    ranks = join(options.device, options.rank_timeout)
    try:
        console = stdout()
        method = load_method(method_name)(options)
        source = open_source(options, method.views(), ranks.device)
        if ranks.is_main:
            _tell_start(method_name, options, len(source), ranks, console)
        after = Probes(options, ranks, console) if options.probe else None
        summary = train(
            method, options, source, ranks, console=console, recipe=recipe, after_epoch=after, keep_going_on_term=keep_going_on_term
        )
        _tell_skipped(source, ranks, console)
    except BaseException as error:
        ranks.tell(str(error).splitlines()[0] if str(error) else type(error).__name__)
        if isinstance(error, UserError) and not ranks.is_main:
            return 2  # the first rank says it
        raise
    finally:
        ranks.close()
    if summary.stopped is not None:
        return 128 + summary.stopped
    if ranks.is_main:
        say(f"done   in an experiment list:   {recipe or method_name}: {summary.folder / 'checkpoint.pth'}", console)
    return 0


def _tell_start(name: str, options: EngineOptions, images: int, ranks: Ranks, console: Any) -> None:
    joint = options.batch_size_per_gpu * options.accumulation_steps * ranks.world
    devices = f"{ranks.world} x {ranks.device.type}" if ranks.world > 1 else str(ranks.device)
    epochs = f"{options.epochs} epoch{'s' * (options.epochs != 1)}"
    say(f"{name}   {images:,} images   {devices}   {joint:,} images per step   {epochs}   -> {options.output_dir}", console)


def check_probe(tasks: Path) -> None:
    """Mistakes in the task config are told before the training."""
    from virb.config import load_task_configs
    from virb.encoders.load import encoder_names
    from virb.tasks.vocabulary import TaskVocabulary

    load_task_configs(tasks, TaskVocabulary(encoder_names())).checked()


def _tell_skipped(source: ViewSource, ranks: Ranks, console: Any) -> None:
    """Images of all ranks that could not be decoded, and that others stood in for."""
    if not source.skip_bad:
        return
    import torch

    times = torch.zeros(len(source), dtype=torch.int64)
    for row, n in source.skipped.items():
        times[row] = n
    times = times.to(ranks.device)
    ranks.add_up([times])
    rows = times.nonzero().flatten().tolist()
    if rows and ranks.is_main:
        names = ", ".join(source.images.ids[row] for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        count, them = (f"{len(rows):,} images", "them") if len(rows) > 1 else ("1 image", "it")
        say(f"{count} could not be decoded; others stood in for {them} ({int(times.sum()):,} times): {names}", console)


class Probes:
    """Runs tasks on the teacher every so many epochs, in a process of its own; results in ``output_dir/probes``. One that fails is told and
    the training goes on."""

    def __init__(self, options: EngineOptions, ranks: Ranks, console: Any) -> None:
        self._tasks, self._every = Path(str(options.probe)), options.every
        self._out = Path(options.output_dir).expanduser() / "probes"
        self._device, self._console = str(ranks.device), console
        self._epochs = options.epochs
        check_probe(self._tasks)

    def __call__(self, checkpoint: Path, epochs: int, stopping: Callable[[], bool]) -> None:
        if epochs % self._every and epochs != self._epochs:
            return
        name = f"epoch{epochs:04}"
        log = self._out / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _CHILD, str(os.getpid()), "run", "--name", name]
        command += [
            "--encoder_weights",
            str(checkpoint),
            "--task_configs",
            str(self._tasks),
            "--out",
            str(self._out),
            "--devices",
            self._device,
        ]
        alone = {key: value for key, value in os.environ.items() if key not in _OF_LAUNCHERS and not key.startswith("TORCHELASTIC_")}
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=alone)
            try:
                while process.poll() is None:
                    if stopping():
                        return  # the engine asks again when the training goes on
                    try:
                        process.wait(0.2)
                    except subprocess.TimeoutExpired:
                        continue
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode:
            say(f"the probe after epoch {epochs} failed (exit code {process.returncode}); see {log}", self._console)
            return
        for line in self._table(name):
            say(f"probe   {line}", self._console)

    def _table(self, name: str) -> list[str]:
        from virb.results.load import load_results
        from virb.results.tables import text_table

        table = load_results(self._out)
        table = table[table["encoder"] == name]
        return text_table(table, [name], list(dict.fromkeys(table["label"]))) if len(table) else []


# Flags


def _names() -> list[str]:
    from virb.pretraining.catalogue import option_names

    return option_names()


def _overview() -> argparse.ArgumentParser:
    parser = make_subparser("virb pretrain", ABOUT["pretrain"], EXAMPLES)
    parser.add_argument("method", metavar="METHOD", help=", ".join(_names()))
    parser.add_argument("--key", metavar="VALUE", help="any key of the method: virb pretrain METHOD --help lists them")
    _own_flags(parser)
    return parser


def _own_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", default=None, help="YAML with any of the keys, or an original args.txt")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def method_parser(method: str) -> argparse.ArgumentParser:
    """All flags of a method, in the groups that ``--help`` shows (the documentation, too)."""
    from virb.pretraining.catalogue import option_sources
    from virb.pretraining.options import describe_keys, options_of

    source = option_sources(method)
    parser = make_subparser(f"virb pretrain {method}", f"{ABOUT['pretrain']} Keys of {method}, with their defaults:", None)
    parser.usage = "%(prog)s [--config FILE] [--KEY VALUE ...]"
    parser.set_defaults(parser=parser)
    _own_flags(parser)
    groups: dict[str, Any] = {"method": parser.add_argument_group(method)}
    for heading, title in _HEADINGS.items():
        groups[heading] = parser.add_argument_group(title)
    for item in describe_keys(options_of(source), "method"):
        several: dict[str, Any] = {"nargs": "+"} if item.several else {"nargs": "?", "const": "true"} if item.kind is bool else {}
        shared: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": _metavar(item), **several}
        about = item.text if item.default is None else f"{item.text} (default: {_shown(item.default)})"
        groups[item.group].add_argument(f"--{item.name}", dest=item.name, help=about.replace("%", "%%"), **shared)
        for alias, target in source.aliases.items():
            if target == item.name:
                groups[item.group].add_argument(f"--{alias}", dest=alias, help=f"the original's name of --{target}", **shared)
    return parser


def _metavar(item: KeyHelp) -> str:
    if item.choices:
        return "{" + ",".join(item.choices) + "}"
    return {bool: "BOOL", int: "N", float: "X"}.get(item.kind, "TEXT")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _flag(argument: str) -> str:
    """``--local-rank`` and other spellings with dashes."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") and len(name) > 2 else argument


def _known(given: Mapping[str, Given], record: type[EngineOptions], aliases: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    """An original args.txt may have keys of no meaning here; in a file of ours they are mistakes, which the check of the record reports."""
    known = {name: item for name, item in given.items() if aliases.get(name, name) in record.model_fields or not item.original}
    return known, sorted(given.keys() - known.keys())


def _compare_world(facts: Mapping[str, Any], options: EngineOptions) -> None:
    then, now = facts.get("world_size"), int(os.environ.get("WORLD_SIZE", "1"))
    if options.launcher == "slurm":
        now = options.nodes * options.ngpus
    if isinstance(then, int) and then != now:
        images = options.batch_size_per_gpu * options.accumulation_steps * now
        note(
            f"the file is of a run on {then} devices, this one has {now}: a step takes {images:,} images instead of "
            f"{options.batch_size_per_gpu * then:,}; accumulation_steps makes up for it"
        )

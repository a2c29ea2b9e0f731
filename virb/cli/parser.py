"""What the command line understands. Nothing heavy is imported here: this is all that ``--help`` needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

import virb
from virb.errors import did_you_mean

COMMANDS = ("run", "check", "list", "show", "convert", "data", "cache", "pretrain", "visualize")
DATA_ACTIONS = ("list", "prepare", "verify", "download", "pack")
CACHE_ACTIONS = ("list", "size", "prune", "verify")
LISTS = ("tasks", "encoders", "datasets", "probes")
# Of virb.tasks.protocols, which is heavy.
PROTOCOL_NAMES = ("default", "linear-sweep", "virb2021", "dino-linear", "dino-knn", "timet-linear", "ibot-linear")
_YAML: dict[str, Any] = {"nargs": "+", "type": Path, "default": [], "metavar": "YAML"}

EXAMPLES = """examples:
  virb run   --experiment_list configs/experiment_lists/quickstart.yaml --task_configs configs/task_configs/quickstart.yaml
  virb run   --name mine --encoder_weights weights/mine.pth --task_configs tasks.yaml --devices cuda:0,cuda:1
  virb check --experiment_list lists/ --task_configs tasks.yaml
  virb list  tasks
  virb show  digits
  virb data  prepare Pets --source ~/Downloads
  virb pretrain dino --config configs/pretraining/dino_tiny_cpu.yaml
"""
ABOUT = {
    "run": "Runs every encoder on every task and adds the results to --out. What is done already is not done again.",
    "check": "Plans and verifies a run without running anything: jobs, passes over images, sizes, disk and time, and all mistakes at once.",
    "list": "What there is: tasks, encoders, datasets or probes.",
    "show": "A task with the value of every setting and where it came from.",
    "convert": "Anybody's checkpoint to weights with nothing else in the file: recognised by its tensors, read without running code.",
    "data": "What tasks need on disk, and bringing it there.",
    "cache": "The features that runs left on disk: what there is, what may go, and whether it is right.",
    "pretrain": "Trains an encoder without labels; a run that was stopped goes on with the same command.",
    "visualize": "Pictures of what methods see.",
}
_ABOUT_DATA = {
    "list": "What each task needs, its size, where it comes from and on which terms, and whether it is there.",
    "prepare": "Unpacks the official archives to where tasks look for them. Goes on where it was stopped; sources are only read.",
    "verify": "Compares the data with what was published and decodes every image. Exit code 1 when something is wrong.",
    "download": "Fetches and unpacks the data where torchvision can or an address is known; says for the others where to get them.",
    "pack": "Copies the images of a dataset into WebDataset tar shards; tasks read them as they read the folder, with equal results.",
}
_DATA_EXAMPLES = """examples:
  virb data list
  virb data list Pets SUN397
  virb data prepare Pets --source ~/Downloads
  virb data verify Pets --data_root /data
  virb data pack photos/ --out /data/photos-packed
"""


_ABOUT_CACHE = {
    "list": "An entry a line: encoder, images, output, size, and when it was last used; the one used longest ago first.",
    "size": "Bytes in all and by encoder.",
    "prune": "Shows which entries would go; with --yes they go. An entry has to fit all that is asked for, and no run may be using it.",
    "verify": "Reads every value and compares checksums; with an experiment list and task configs a sample of rows is encoded again and "
    "compared. Exit code 1 when something is wrong; nothing is changed.",
}
_CACHE_EXAMPLES = """examples:
  virb cache list --cache_dir /scratch/virb
  virb cache prune --older_than 30d
  virb cache prune --encoder 'DINO*' --to 200GB --yes
  virb cache verify --experiment_list lists/ --task_configs tasks.yaml --rows 16
"""


class UsageError(Exception):
    """The command line cannot be understood; the message is for the user."""


class _Parser(argparse.ArgumentParser):
    """Mistakes in one or two lines, with the nearest valid word, instead of the whole usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = flags(options.parser)
            hint = did_you_mean(unknown[0].partition("=")[0], known) or f"; {options.parser.prog} --help shows what there is"
            raise UsageError(f"{options.parser.prog}: unknown option {unknown[0]}{hint}")
        return options

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message.removeprefix('argument ')} ({self.prog} --help shows what there is)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            below = f"{self.prog.split()[-1]} command"
            what = {"command": "command", "what": "list", "action": below}.get(action.dest, "/".join(action.option_strings))
            hint = did_you_mean(str(value), choices) or f"; there are {', '.join(choices)}"
            raise UsageError(f"{self.prog}: no {what} {value!r}{hint}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=130)


def flags(parser: argparse.ArgumentParser) -> list[str]:
    return [text for action in parser._actions for text in action.option_strings]


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="virb", description="ViRB: what do frozen visual encoders know?", epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"ViRB {virb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser, title="commands")

    run = _command(commands, "run", "run encoders on tasks (also when no command is named)", EXAMPLES)
    _run_options(run)
    run.add_argument("--dry_run", action="store_true", help="plan and verify only, like virb check")

    check = _command(commands, "check", "plan and verify everything, run nothing")
    _run_options(check)

    listing = _command(commands, "list", ABOUT["list"][0].lower() + ABOUT["list"][1:-1])
    listing.add_argument("what", choices=LISTS, metavar="WHAT", help=", ".join(LISTS))
    listing.add_argument("--debug", action="store_true", help="show tracebacks")

    show = _command(commands, "show", "a task with all its settings and where each came from")
    show.add_argument("task", metavar="TASK", help="a task id, or a label of --task_configs")
    show.add_argument("--task_configs", "--virb_configs", **_YAML, help="files or folders that have the label")
    show.add_argument("--protocol", metavar="NAME", help="as for virb run")
    show.add_argument("--seed", type=int, metavar="N", default=0, help="as for virb run")
    show.add_argument("--debug", action="store_true", help="show tracebacks")

    convert = _command(commands, "convert", "a checkpoint of any known layout to plain weights (.pt or .safetensors)")
    convert.add_argument("source", metavar="IN", type=Path, help="the checkpoint as it was published or saved")
    convert.add_argument("destination", metavar="OUT", type=Path, help=".pt (ResNets: readable by ViRB 2021 too) or .safetensors")
    convert.add_argument("--checkpoint_key", metavar="KEY", help="another network of the file than the usual one: student, encoder_k ...")
    convert.add_argument("--debug", action="store_true", help="show tracebacks")

    _data_options(_command(commands, "data", "list, prepare, verify or download datasets", _DATA_EXAMPLES))
    _cache_options(_command(commands, "cache", "list, size, prune or verify the features on disk", _CACHE_EXAMPLES))
    # Its flags depend on the method: virb/cli/pretrain.py reads them. It stands here to be listed and suggested.
    _command(commands, "pretrain", "train an encoder without labels: DINO, Patch-Wise DINO")
    _visualize_options(_command(commands, "visualize", "draw which patches of two views match"))
    return parser


def make_subparser(prog: str, about: str, epilog: str | None) -> argparse.ArgumentParser:
    """A parser like those of all commands, for one that makes its own flags."""
    return _Parser(prog=prog, description=about, epilog=epilog)


def _command(commands: Any, name: str, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=ABOUT[name], epilog=epilog)
    parser.set_defaults(parser=parser)
    return parser


def _data_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser, title="actions")
    for name in DATA_ACTIONS:
        about = _ABOUT_DATA[name]
        action = actions.add_parser(name, help=about.partition(". ")[0].rstrip("."), description=about)
        action.set_defaults(parser=action)
        if name == "list":
            action.add_argument("ids", nargs="*", metavar="ID", help="only these tasks or datasets, with all that is known of them")
        else:
            more = {"pack": ", or a folder with {train,val,test}/<class>/*", "verify": ", or a folder: a packed dataset, or class folders"}
            action.add_argument("id", metavar="ID", help=f"a task (Pets) or a dataset (pets){more.get(name, '')}")
        if name == "prepare":
            action.add_argument(
                "--source",
                nargs="+",
                type=Path,
                required=True,
                metavar="PATH",
                help="the archives, or folders that have them (3 levels deep)",
            )
            action.add_argument("--force", action="store_true", help="go through finished archives again, for files that were lost")
        if name == "verify":
            action.add_argument("--quick", action="store_true", help="numbers and pairs only, no image is decoded")
            action.add_argument("--num_workers", type=int, metavar="N", help="threads that decode (default: one per core)")
        if name == "pack":
            action.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where shards and index go: a new folder")
            action.add_argument("--shard_size", metavar="SIZE", help="bytes of images in a shard (default: 1GB)")
            action.add_argument("--force", action="store_true", help="pack again over an earlier pack")
        action.add_argument("--data_root", type=Path, metavar="FOLDER", help="where datasets lie (default: data)")
        action.add_argument("--debug", action="store_true", help="show tracebacks")


def _cache_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser, title="actions")
    for name in CACHE_ACTIONS:
        about = _ABOUT_CACHE[name]
        action = actions.add_parser(name, help=about.partition(". ")[0].rstrip("."), description=about)
        action.set_defaults(parser=action)
        where = action.add_argument_group("where the cache is")
        where.add_argument("--cache_dir", type=Path, metavar="FOLDER", help="its folder (default: as virb run finds it)")
        where.add_argument("--data_root", type=Path, metavar="FOLDER", help="as for virb run")
        where.add_argument("--out", type=Path, metavar="FOLDER", default=Path("out"), help="as for virb run")
        if name in ("list", "prune"):
            action.add_argument("--encoder", nargs="+", default=[], metavar="GLOB", help="only of these encoders, by name or id")
            action.add_argument("--older_than", metavar="AGE", help="only what was not used for so long: 12h, 30d, 8w")
        if name == "prune":
            action.add_argument("--to", metavar="SIZE", help="what was used longest ago, until the whole cache is as small as this: 200GB")
            action.add_argument("--unreadable", action="store_true", help="only what is damaged or of another version; reads every value")
            action.add_argument("--yes", action="store_true", help="remove it; without this nothing is removed")
        if name == "verify":
            _what_to_run(action)
            _what_decides(action)
            action.add_argument("--devices", metavar="LIST", default="auto", help="as for virb run; entries of its kind are compared")
            action.add_argument("--rows", type=int, metavar="N", default=8, help="rows of each entry to encode again (default: 8)")
        action.add_argument("--debug", action="store_true", help="show tracebacks")


def _visualize_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_Parser, title="actions")
    about = "Draws two views of an image side by side, with the patches that show the same place in one colour, and prints the pairs."
    action = actions.add_parser("match", help="which patches of two views of an image match", description=about)
    action.set_defaults(parser=action)
    action.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    action.add_argument("--out", metavar="PNG", type=Path, default=Path("matches.png"), help="the picture (default: matches.png)")
    kinds: dict[str, Any] = {"nargs": 2, "choices": ("global", "local"), "metavar": ("FIRST", "SECOND"), "default": ("global", "local")}
    action.add_argument("--views", **kinds, help="global or local (default: global local)")
    action.add_argument("--sizes", nargs=2, type=int, metavar=("FIRST", "SECOND"), help="sides in pixels (default: global 224, local 96)")
    action.add_argument("--patch_size", type=int, metavar="N", default=32, help="side of the patches in pixels (default: 32)")
    rules = ("nearest", "linspace")
    action.add_argument("--matching", choices=rules, metavar="RULE", default="nearest", help="nearest, or linspace as the original")
    action.add_argument("--min_overlap", type=float, metavar="SHARE", default=0.0, help="least share of the smaller patch that is common")
    action.add_argument("--squash", type=int, metavar="N", help="resize the image to N x N pixels first (the original: 256)")
    action.add_argument("--seed", type=int, metavar="N", default=0, help="other views of the same image (default: 0)")
    action.add_argument("--plain", action="store_true", help="without changes of colour and blur")
    action.add_argument("--debug", action="store_true", help="show tracebacks")


def _what_to_run(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to run")
    what.add_argument("--experiment_list", **_YAML, help="encoders: one or more files or folders")
    what.add_argument("--task_configs", "--virb_configs", **_YAML, help="tasks: one or more files or folders")
    what.add_argument("--name", metavar="NAME", help="a single encoder instead of a list: its name in the results")
    what.add_argument("--encoder_weights", metavar="PATH", help="its weights (default: torchvision's supervised ResNet-50)")
    what.add_argument("--suffix", metavar="TEXT", default="", help="appended to every encoder's name")
    what.add_argument("--only", nargs="+", default=[], metavar="GLOB", help="only these encoders: 'DINO*'")
    what.add_argument("--tasks", nargs="+", default=[], metavar="GLOB", help="only these task labels: 'NYU*,Pets'")


def _what_decides(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("what decides the numbers")
    how.add_argument("--protocol", metavar="NAME", help=f"a named bundle of settings for all tasks: {', '.join(PROTOCOL_NAMES)}")
    how.add_argument("--input_size", metavar="PIXELS", help="for all encoders and tasks, before anything else that says a size")
    how.add_argument("--precision", metavar="TYPE", default="auto", help="auto (fp32 on CPUs, bf16 on GPUs), fp32, bf16 or fp16")
    how.add_argument("--compile", action="store_true", help="encoders by torch.compile; an encoder that cannot be compiled fails")
    how.add_argument("--decoder", metavar="NAME", default="pillow", help="pillow, or fast: pixels differ in rounding (default: pillow)")
    how.add_argument("--seed", metavar="N", default=0, help="of heads, order, augmentation and random encoders (default: 0)")


def _run_options(parser: argparse.ArgumentParser) -> None:
    # Values stay text: virb/runner/settings.py checks them, and tells what is wrong together with the mistakes of the files.
    _what_to_run(parser)
    _what_decides(parser)
    where = parser.add_argument_group("where and how")
    where.add_argument("--out", type=Path, metavar="FOLDER", default=Path("out"), help="results; every run adds to them (default: out)")
    where.add_argument("--data_root", type=Path, metavar="FOLDER", help="where datasets lie (default: data)")
    where.add_argument("--devices", metavar="LIST", default="auto", help="auto, cpu, cpu:4, cuda:0,cuda:2 (default: auto)")
    where.add_argument("--num_workers", metavar="N", help="threads per device that decode images ahead")
    where.add_argument(
        "--cache_dir", type=Path, metavar="FOLDER", help="features (default: .virb_cache in the data root if there is one, else in --out)"
    )
    where.add_argument(
        "--local_cache",
        type=Path,
        metavar="FOLDER",
        help="on a disk of this machine: features too large for memory are read from copies there",
    )
    where.add_argument(
        "--cache_budget", metavar="SIZE", default="80%", help="how much of the disk features may take: 80%% of what is free, 200GB, or 0"
    )
    where.add_argument("--no_cache", action="store_true", help="keep features in a scratch folder that goes with the run")
    where.add_argument("--keep_heads", metavar="WHICH", default="chosen", help="heads to save: chosen, all or none (default: chosen)")
    where.add_argument("--force", action="store_true", help="run finished jobs again")
    where.add_argument("--profile", action="store_true", help="say at the end where the time went")
    where.add_argument("--debug", action="store_true", help="show tracebacks")

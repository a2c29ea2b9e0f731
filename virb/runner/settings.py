"""From the options of a command line or of Python to the settings of a run; what is wrong with them is reported together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from virb.errors import Problem, UserError, did_you_mean
from virb.io import can_write, existing_parent
from virb.plan.jobs import RunSettings
from virb.plan.units import parse_budget
from virb.runner.devices import parse_devices, resolve_precision
from virb.tasks.protocols import PROTOCOLS, no_protocol

COMMAND_LINE = "command line"
KEEP_HEADS = ("chosen", "all", "none")
DECODER_MODULES = {"pillow": "PIL", "fast": "simplejpeg"}  # by the name of the decoder: what has to be installed
DATA_ROOT = Path("data")


class _Options:
    """Given options; takes note of what is wrong with them."""

    def __init__(self, given: Mapping[str, Any], place: str, problems: list[Problem]) -> None:
        self._given, self._place, self._problems = given, place, problems

    def get(self, name: str, default: Any = None) -> Any:
        value = self._given.get(name)
        return default if value is None else value

    def wrong(self, name: str, message: str) -> None:
        dashes = "" if self._place == "<python>" else "--"
        message = message.removeprefix(f"--{name} {self._given.get(name)}: ").removeprefix(f"--{name} ")
        self._problems.append(Problem(self._place, 0, f"{dashes}{name}", message))

    def whole(self, name: str, least: int, default: int | None = None) -> int | None:
        value = self.get(name)
        if isinstance(value, str) and self._place == COMMAND_LINE:  # where all is text
            with suppress(ValueError):
                value = int(value)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            self.wrong(name, f"{value!r} is not a whole number of at least {least}")
            return default
        return default if value is None else value

    def switch(self, name: str) -> bool:
        value = self.get(name, False)
        if not isinstance(value, bool):
            self.wrong(name, f"{value!r} is neither true nor false")
        return bool(value)

    def folder(self, name: str) -> Path | None:
        value = self.get(name)
        if value is None:
            return None
        path = Path(value).expanduser()
        there = existing_parent(path)
        if not there.is_dir():
            self.wrong(name, f"{there} is a file, not a folder")
        return path


def make_settings(given: Mapping[str, Any], problems: list[Problem], place: str = COMMAND_LINE) -> RunSettings:
    """Options by name, None for those not given. What cannot be used goes to ``problems``, and the default stands in for it."""
    options = _Options(given, place, problems)
    devices, precision = _devices(options)
    out = options.folder("out") or Path("out")
    data_root = options.folder("data_root")
    if data_root is not None and not data_root.exists():
        options.wrong("data_root", f"{data_root} does not exist")
    cache_dir, no_cache = options.folder("cache_dir"), options.switch("no_cache")
    if cache_dir is not None and no_cache:
        options.wrong("no_cache", "keeps nothing, but --cache_dir says where to keep it; leave out one of them")
    local_cache = options.folder("local_cache")
    if local_cache is not None and not can_write(local_cache):
        options.wrong("local_cache", f"{local_cache} cannot be written; choose a folder you may write to")
    budget = str(options.get("cache_budget", "80%"))
    try:
        parse_budget(budget, out)
    except UserError as error:
        options.wrong("cache_budget", str(error))
        budget = "80%"
    protocol = options.get("protocol")
    if protocol is not None and protocol not in PROTOCOLS:
        options.wrong("protocol", no_protocol(protocol))
        protocol = None
    keep_heads = options.get("keep_heads", KEEP_HEADS[0])
    if keep_heads not in KEEP_HEADS:
        options.wrong("keep_heads", f"{keep_heads!r} is none of {', '.join(KEEP_HEADS)}{did_you_mean(str(keep_heads), KEEP_HEADS)}")
        keep_heads = KEEP_HEADS[0]
    decoder = options.get("decoder", "pillow")
    if decoder not in DECODER_MODULES:
        options.wrong("decoder", f"{decoder!r} is none of {', '.join(DECODER_MODULES)}{did_you_mean(str(decoder), tuple(DECODER_MODULES))}")
        decoder = "pillow"
    elif find_spec(DECODER_MODULES[decoder]) is None:
        options.wrong("decoder", f"{decoder} needs {DECODER_MODULES[decoder]}: pip install 'virb[{decoder}]'")
    return RunSettings(
        out=out,
        data_root=data_root or DATA_ROOT,
        cache_dir=cache_dir,
        local_cache=local_cache,
        cache_budget=budget,
        no_cache=no_cache,
        devices=devices,
        precision=precision,
        compile=options.switch("compile"),
        decoder=decoder,
        input_size=options.whole("input_size", 1),
        protocol=protocol,
        num_workers=options.whole("num_workers", 0),
        force=options.switch("force"),
        seed=options.whole("seed", 0, default=0) or 0,
        keep_heads=keep_heads,
        command=tuple(options.get("command", ())),
    )


def _devices(options: _Options) -> tuple[tuple[str, ...], str]:
    try:
        devices = parse_devices(str(options.get("devices", "auto")))
    except UserError as error:
        options.wrong("devices", str(error))
        devices = ("cpu",)
    try:
        return devices, resolve_precision(str(options.get("precision", "auto")), devices[0])
    except UserError as error:
        options.wrong("precision", str(error))
        return devices, "float32"

"""The command line. Each command imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import io
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from virb.cli.parser import COMMANDS, UsageError, make_parser
from virb.errors import ConfigError, UserError, ViRBError, describe

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every job succeeded, 1 when one failed, 2 for mistakes in the input, 130 after Ctrl-C."""
    _let_any_text_through()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "run")
    debug = "--debug" in arguments
    try:
        if arguments[0] == "pretrain":
            from virb.cli.pretrain import pretrain

            return pretrain(arguments[1:])
        options = make_parser().parse_args(arguments)
        options.command_line = tuple(arguments)
        return _call(options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except ViRBError as error:
        if debug:
            raise
        print(error if isinstance(error, ConfigError) else f"virb: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("\nstopped; finished jobs are kept, the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (virb list tasks | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"virb: a mistake of ViRB itself: {describe(error).splitlines()[0]}; --debug shows more", file=sys.stderr)
        return 1


def _let_any_text_through() -> None:
    """Where the terminal has no UTF-8, or a file name is not valid in it, a question mark stands in; the run goes on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _convert(options: Namespace) -> int:
    from virb.encoders.convert import command

    return command(options)


def _visualize(options: Namespace) -> int:
    from virb.cli.visualize import visualize

    return visualize(options)


def _call(options: object) -> int:
    from virb.cli import cache, catalogue, data, run

    command = getattr(options, "command", COMMANDS[0])
    calls = {
        "run": run.run,
        "check": run.check,
        "list": catalogue.list_names,
        "show": catalogue.show,
        "convert": _convert,
        "data": data.data,
        "cache": cache.cache,
        "visualize": _visualize,
    }
    return calls[command](options)  # type: ignore[arg-type]

"""Runs the benchmarks and writes their tables into docs/performance.md: python benchmarks/run.py [--quick] [--only cache fanout ...]

Each runs in a process of its own. A table stands between two marks with the machine it was made on, so that some of them can be made
anew, or on another machine, and the others stay. ``--quick`` prints small versions and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from frame import Table, machine

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
BLOCK = re.compile(r"<!-- benchmark: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_RESULT = "table: "


def names() -> list[str]:
    """All files beside this one that have a table."""
    return sorted(path.stem for path in HERE.glob("*.py") if "\ndef table(" in path.read_text(encoding="utf-8"))


def measure(name: str, quick: bool) -> tuple[Table, str]:
    """The table of one benchmark, and the machine; what it prints besides goes through."""
    command = [sys.executable, __file__, "--one", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    *rest, last = done.stdout.rstrip("\n").split("\n")
    if rest:
        print("\n".join(rest))
    if done.returncode or not last.startswith(_RESULT):
        raise SystemExit(f"benchmarks/{name}.py failed (exit code {done.returncode})\n{last}")
    found = json.loads(last.removeprefix(_RESULT))
    table = found["table"]
    rows = tuple(tuple(row) for row in table["rows"])
    return Table(table["title"], tuple(table["columns"]), rows, tuple(table["notes"]), table["gpu"]), found["machine"]


def one(name: str, quick: bool) -> None:
    table: Table = importlib.import_module(name).table(quick)
    print(_RESULT + json.dumps({"table": asdict(table), "machine": machine()}))


def block(name: str, table: Table, where: str, day: str) -> str:
    return f"<!-- benchmark: {name} -->\n\n{table.markdown()}\n`python benchmarks/{name}.py` on {where}; {day}\n\n<!-- end -->"


def rewrite(page: str, blocks: dict[str, str]) -> str:
    """The page with these blocks in place of those of the same name; new ones stand at the end."""
    page = BLOCK.sub(lambda found: blocks.get(found[1], found[0]), page)
    there = {found[1] for found in BLOCK.finditer(page)}
    return page + "".join(f"\n## {name}\n\n{text}\n" for name, text in blocks.items() if name not in there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names(), default=names(), help=", ".join(names()))
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one, options.quick)
    for name in options.only:
        began = time.monotonic()
        table, where = measure(name, options.quick)
        print(f"{table.text()}\nbenchmarks/{name}.py took {time.monotonic() - began:.0f} s\n", flush=True)
        if not options.quick:
            page = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(rewrite(page, {name: block(name, table, where, time.strftime("%Y-%m-%d"))}), encoding="utf-8")


if __name__ == "__main__":
    main()

"""A user's own code: imported by its name in YAML (``package.module:Name``), and what identifies it, its source."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from virb.errors import UserError, did_you_mean
from virb.io import hash_record

_MAIN = ("__main__", "__mp_main__")  # one module: worker processes know the script that started them by the second name
_INSTALLED = ("site-packages", "dist-packages")


def import_attribute(name: str, what: str) -> Any:
    """What ``package.module:Name`` names. The current folder is importable. UserError says what is wrong with this ``what``."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f"the {what} {name!r} should be written package.module:Name")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(f"the {what} {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, dir(module))
        raise UserError(f"the module {module_name} has no {attribute!r} (asked for by the {what} {name}){hint}")
    return getattr(module, attribute)


def source_hash(names: Iterable[str]) -> str | None:
    """One hash for all code that is named ``package.module:Name``; None when no name has a colon: that code is ViRB's own."""
    modules = {name.partition(":")[0] for name in names if ":" in name}
    return hash_record(sources(modules)) if modules else None


def sources(modules: Iterable[str]) -> dict[str, str]:
    """Top-level package or module -> hash of its Python files: those of ``modules``, and all that their files import of the user's own.

    A package counts whole. Imports are read from the text, so that the answer is the same in every process whatever is imported so far;
    what is imported by a computed name is not seen. Not followed: the standard library, what is installed (in site-packages) and ViRB.
    A file's text is as it was when first asked for, which is when it was imported.
    """
    waiting, found = sorted({_top(module) for module in modules}), {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        files = _files(name)
        found[name], imported = _read(name, files, sys.modules.get(name))
        if not any(_is_installed(path) for _, path in files):
            waiting += [other for other in imported if other not in found and _is_users(other)]
    return dict(sorted(found.items()))


def _top(module: str) -> str:
    """The top-level name; for a script run as ``python -m package.module`` the package's."""
    if module in _MAIN:
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        return spec.name.partition(".")[0] if spec is not None else "__main__"
    return module.partition(".")[0]


def _is_users(name: str) -> bool:
    if name == "virb" or name in sys.stdlib_module_names:
        return False
    files = _files(name)
    return bool(files) and not any(_is_installed(path) for _, path in files)


def _is_installed(path: str) -> bool:
    return any(part in _INSTALLED for part in Path(path).parts)


def _files(name: str) -> tuple[tuple[str, str], ...]:
    """(path below the package, path) of the Python files of a top-level name, in fixed order; none for what is built in or not there."""
    if name == "__main__":
        script = getattr(sys.modules.get(name), "__file__", None)
        return (("__main__.py", script),) if script and os.path.isfile(script) else ()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a module that something put into sys.modules by hand
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is None:
        return ((f"{name}.py", spec.origin),) if spec.origin and os.path.isfile(spec.origin) else ()
    folders = [str(folder) for folder in spec.submodule_search_locations]
    return tuple(sorted((os.path.relpath(path, folder).replace(os.sep, "/"), path) for folder in folders for path in _python_files(folder)))


def _python_files(folder: str) -> Iterator[str]:
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]  # others cannot be imported
        yield from (os.path.join(base, name) for name in files if name.endswith(".py"))


@lru_cache(maxsize=256)
def _read(name: str, files: tuple[tuple[str, str], ...], module: ModuleType | None) -> tuple[str, frozenset[str]]:
    """The hash of these files, and the top-level names that they import. ``module``: one that is imported again is read again."""
    digest, imported = hashlib.sha256(), set()
    for relative, path in files:
        text = Path(path).read_bytes()
        digest.update(b"%s\n%d\n%s" % (relative.encode("utf-8", "surrogateescape"), len(text), text))
        if not _is_installed(path):
            imported |= _imported(text)
    return digest.hexdigest(), frozenset(imported - {name})


def _imported(text: bytes) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):  # a file that is never imported, or no text
        return set()
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}

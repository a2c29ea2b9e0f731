"""Where numbers come from: versions, git state and hardware, gathered once per process."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import virb
from virb.io import available_cores
from virb.results.schema import Hardware, Provenance

# What can change a number; absent ones are left out.
PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pandas", "pillow", "av", "safetensors", "pydantic", "PyYAML",
    "faiss-gpu", "faiss-cpu", "tensorboard", "submitit", "ray",
)  # fmt: skip
CHECKOUT = Path(virb.__file__).resolve().parent.parent


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def provenance(
    *,
    started: str,
    finished: str | None = None,
    device: str | None = None,
    seeds: Sequence[int] = (),
    precision: str | None = None,
    command: Sequence[str] | None = None,
    config_text: str | None = None,
) -> Provenance:
    """Everything about this process that a reader of a result may ask for; ``command`` defaults to this process's own."""
    revision, diff_hash = git_state(CHECKOUT)
    return Provenance(
        virb_version=virb.__version__,
        python=platform.python_version(),
        packages=package_versions(),
        git_revision=revision,
        git_diff_hash=diff_hash,
        hardware=hardware(),
        device=device,
        seeds=list(seeds),
        precision=precision,
        command=list(sys.argv if command is None else command),
        config_text=config_text,
        started=started,
        finished=finished,
    )


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@lru_cache(maxsize=4)
def git_state(checkout: Path) -> tuple[str | None, str | None]:
    """(revision, sha256 of the difference from it): (None, None) when ``checkout`` is not the top of a repository or has no commit,
    (revision, None) when nothing differs. Files that git does not know yet count when they are part of the package."""
    top = _output(["git", "-C", str(checkout), "rev-parse", "--show-toplevel"])
    if top is None or Path(os.fsdecode(top.strip())).resolve() != checkout.resolve():
        return None, None  # an environment inside somebody's repository is not a checkout of ViRB
    revision = _output(["git", "-C", str(checkout), "rev-parse", "--verify", "--quiet", "HEAD"])
    if revision is None:
        return None, None
    difference = _output(["git", "-C", str(checkout), "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color"]) or b""
    unknown = _output(["git", "-C", str(checkout), "ls-files", "-z", "--others", "--exclude-standard", "--", "virb", "main.py"]) or b""
    names = sorted(name for name in unknown.split(b"\0") if name)
    if not difference and not names:
        return revision.decode().strip(), None
    digest = hashlib.sha256(difference)
    for name in names:
        path = checkout / os.fsdecode(name)
        content = path.read_bytes() if path.is_file() else b""
        digest.update(b"%d %s %d\0" % (len(name), name, len(content)) + content)
    return revision.decode().strip(), digest.hexdigest()


@lru_cache(maxsize=1)
def hardware() -> Hardware:
    cores, memory = available_cores(), _memory_bytes()
    return Hardware(cpu=_cpu_model(), cores=cores, memory_bytes=memory, gpus=_gpu_names(), platform=platform.platform())


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpu_names() -> list[str]:
    """From the driver's own tool: asking torch would open a context on every device."""
    tool = shutil.which("nvidia-smi")
    answer = _output([tool, "--query-gpu=name", "--format=csv,noheader"]) if tool else None
    return [line.strip() for line in answer.decode(errors="replace").splitlines() if line.strip()] if answer else []


def _output(command: list[str]) -> bytes | None:
    """What a command prints, None when it is absent or fails."""
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None

"""Loading with the network closed: what a check uses, which says what is not downloaded yet instead of downloading it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch.hub

from virb.encoders.download import NotDownloaded
from virb.errors import UserError


class _Closed(URLError):
    """Somebody wanted an address while the network was closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__("the network is not used here")


@contextmanager
def only_cached(offline: bool, address: str, advice: str) -> Iterator[None]:
    """With ``offline``, whatever would be downloaded inside is NotDownloaded: ``address`` (or the exact one that was wanted) and
    ``advice``, which cache to fill and how. Without, nothing changes."""
    if not offline:
        yield
        return
    try:
        with _no_network():
            yield
    except NotDownloaded:
        raise
    except (UserError, OSError, RuntimeError) as error:
        missing = _missing(error)
        if missing is None:
            raise
        address = missing.url if isinstance(missing, _Closed) else address
        raise NotDownloaded(f"not downloaded yet: {address}\n  {advice}", address) from error


@contextmanager
def _no_network() -> Iterator[None]:
    """Closes the ways by which torch.hub, timm, transformers and open_clip download. For the whole process, so keep it short."""
    from huggingface_hub import constants

    def refuse(request: Any, *_: Any, **__: Any) -> Any:
        raise _Closed(request if isinstance(request, str) else request.full_url)

    ways: tuple[tuple[Any, str, Any], ...] = (
        (urllib.request, "urlopen", refuse),
        (torch.hub, "urlopen", refuse),
        (constants, "HF_HUB_OFFLINE", True),
    )
    before = [getattr(module, name) for module, name, _ in ways]
    for module, name, closed in ways:
        setattr(module, name, closed)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # torch.hub says "Downloading" before it tries, on either
            yield
    finally:
        for (module, name, _), opened in zip(ways, before, strict=True):
            setattr(module, name, opened)


def torch_cache() -> Path:
    """Where torch.hub and torchvision keep weights files."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def timm_source(model: str) -> tuple[str, str]:
    """The address of a timm model's pretrained weights, and which cache to fill."""
    import timm
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg(model) if "/" not in model else None
    name = model.partition(":")[2] if config is None else getattr(config, "hf_hub_id", None)
    if not name:
        return getattr(
            config, "url", None
        ) or f"timm:{model}", f"a run puts it in {torch_cache()}; without a network, put it there yourself"
    advice = f"a run downloads it; without a network, fill the cache {constants.HF_HUB_CACHE}"
    return f"https://huggingface.co/{name}", f"{advice}\n  from a machine that has one (hf download {name})"


def _missing(error: BaseException | None) -> BaseException | None:
    """What in the chain of an error says that something is not in a cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, _Closed | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return error
        error = error.__cause__ or error.__context__
    return None

"""ViRB: what do frozen visual encoders know?

import virb
encoder = virb.load_encoder("weights/dino_deitsmall16_pretrain.pth")
results = virb.run(experiments={"dino": encoder}, tasks=["digits"], out="out/mine")
results.table()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Results", "dataset", "encode", "load_encoder", "load_results", "run"]

if TYPE_CHECKING:
    from virb.api import Results, dataset, encode, load_encoder, load_results, run


def __getattr__(name: str) -> Any:
    """The API is imported when it is first used, so that ``import virb`` (and ``virb --help``) costs nothing."""
    if name in __all__:
        from virb import api

        return getattr(api, name)
    raise AttributeError(f"module 'virb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Protocols: named bundles of defaults for all that decides a number besides weights and data.

Order: explicit key > protocol > task default > ``default``, which is also the protocol when none is named. Keys are those of the YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from virb.data.transforms import Geometry


@dataclass(frozen=True)
class Protocol:
    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # values that hold for one probe only
    geometry: Geometry | None = None
    variant: str | None = None  # task ids map to ``ID@variant`` where there is one
    about: str = ""

    def layer(self, probe: str) -> Mapping[str, Any]:
        """All it says of a task that is answered by this probe."""
        return {**self.values, **self.probes.get(probe, {})}


_SWEEP = {"optimizer": ["adamw"], "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "weight_decay": [0.0, 1e-2], "scheduler": ["cosine"]}
_MLP_SWEEP = {"optimizer": ["adamw"], "lr": [1e-4, 1e-3, 1e-2], "weight_decay": [0.0, 1e-2], "scheduler": ["cosine"]}

# What holds when nobody says otherwise. The batch size is global and the learning rate is never scaled with it.
DEFAULT = Protocol(
    "default",
    values={
        "num_epochs": 50,
        "batch_size": 256,
        "selection": "val",
        "seeds": [0],
        "views": 1,
        "augment": "none",
        "refit": False,
        "on_bad_image": "error",
    },
    probes={"linear": {"grid": _SWEEP}, "mlp": {"grid": _MLP_SWEEP}},
    about="frozen features, no augmentation; a sweep of learning rates and weight decays, chosen on validation",
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        DEFAULT,
        Protocol(
            "virb2021",
            values={"num_epochs": 100, "batch_size": 32, "selection": "test-last"},
            probes={name: {"training_configs": {"adam-0.0001": {"optimizer": "adam", "lr": 1e-4}}} for name in ("linear", "mlp")},
            geometry=Geometry(size=(224, 224), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None),
            variant="virb2021",
            about="the procedure published in 2021: the last epoch, every training config scored on the test split and the best one named",
        ),
    )
}


def no_protocol(name: str) -> str:
    """The message for a name that is no protocol's."""
    return f"no protocol {name!r}; there are {', '.join(sorted(PROTOCOLS))}"

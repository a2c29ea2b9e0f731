"""Protocols: named bundles of defaults for all that decides a number besides weights and data.

Order: explicit key > protocol > task default > ``default``, which is also the protocol when none is named. Keys are those of the YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from virb.data.transforms import Geometry


@dataclass(frozen=True)
class Protocol:
    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # values that hold for one probe only
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # values that hold for one task id only
    lr_per: int | None = None  # learning rates of its grids are for that many samples a step: they are scaled to the batch size
    geometry: Geometry | None = None
    variant: str | None = None  # task ids map to ``ID@variant`` where there is one
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # values of a key that are no change of the protocol
    view_interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None  # of augmented views, where it is not the geometry's
    about: str = ""

    def layer(self, probe: str, task_id: str = "") -> Mapping[str, Any]:
        """All it says of a task (by its id, any ``@variant`` counts as the plain one) that is answered by this probe."""
        own = self.tasks.get(task_id.partition("@")[0], {})
        if probe not in self.probes:  # training configs are for the probes that it knows
            own = {key: value for key, value in own.items() if key not in ("training_configs", "grid")}
        return {**self.values, **self.probes.get(probe, {}), **own}

    def grid_for(self, grid: Mapping[str, Any], batch_size: int) -> Mapping[str, Any]:
        """One of its grids as it is for this batch size."""
        if self.lr_per is None or "lr" not in grid:
            return grid
        return {**grid, "lr": [float(f"{rate * batch_size / self.lr_per:.6g}") for rate in grid["lr"]]}


_SWEEP = {
    "optimizer": ["adamw"],
    "lr": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
    "weight_decay": [0.0, 1e-3, 1e-2, 1e-1],
    "scheduler": ["cosine"],
}
# DINO's evaluations resize the shorter side to 256 and crop 224 of it.
_DINO = Geometry(size=(224, 224), resize="shorter", crop="center", crop_pct=0.875, interpolation="bicubic", view=None)
# What their linear classifier takes: [CLS] of four blocks (ViT-S), [CLS] and the mean patch token (ViT-B), the output (ResNet-50, XCiT).
_DINO_FEATURES = ("cls[-4:].flatten", "cls[-1]+tokens[-1].mean", "embedding")
_DINO_LINEAR = {
    "optimizer": ["sgd"],
    "momentum": [0.9],
    "lr": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],  # per 256 samples
    "weight_decay": [0.0],
    "scheduler": ["cosine"],
    "init": ["normal0.01"],
}


def _pixelwise_2021(lr: float, num_epochs: int, **more: Any) -> dict[str, Any]:
    """One Adam config and batches of 16. (Edges, inpainting and COCO are in no published file: theirs are of the last one before it.)"""
    return {"num_epochs": num_epochs, "batch_size": 16, "training_configs": {f"adam-{lr:g}": {"optimizer": "adam", "lr": lr, **more}}}


# As published in 2021: one Adam config and 100 epochs of batches of 32, but for these.
_VIRB_PROBES = ("linear", "mlp", "pixelshuffle", "siamese", "deeplab@virb2021")
_VIRB_TASKS: dict[str, dict[str, Any]] = {
    "SUN397": {"num_epochs": 250},
    "CalTech-101": {"num_epochs": 500},
    "Eurosat": {"num_epochs": 200},
    "KineticsActionPrediction": {"training_configs": {"adam-0.0003": {"optimizer": "adam", "lr": 3e-4}}},
    "THORDepth": _pixelwise_2021(3e-4, 50),
    "NYUDepth": _pixelwise_2021(3e-4, 250),
    "NYUWalkable": _pixelwise_2021(1e-4, 250),
    "TaskonomyDepth": _pixelwise_2021(1e-4, 50),
    "TaskonomyEdges": _pixelwise_2021(3e-4, 10),
    "TaskonomyInpainting": _pixelwise_2021(3e-4, 25),
    "KITTI": _pixelwise_2021(3e-4, 250),
    "EgoHands": _pixelwise_2021(3e-4, 25),
    "CityscapesSemanticSegmentation": _pixelwise_2021(3e-4, 100, scheduler={"type": "Poly", "exponent": 0.9}),
    "Pets-Detection": _pixelwise_2021(1e-4, 100),
    "COCODetection": _pixelwise_2021(3e-4, 25),
}

_DENSE_SWEEP = {"optimizer": ["adamw"], "lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1], "weight_decay": [1e-4], "scheduler": ["cosine"]}
_DECODER_SWEEP = {"optimizer": ["adamw"], "lr": [1e-4, 1e-3], "weight_decay": [1e-4], "scheduler": ["cosine"]}
# iBOT's linear segmentation of ADE20K: the maps of four blocks, 160,000 iterations of 16 crops of 512 (127 epochs of 20,210 images).
_IBOT_FEATURES = ("tokens[3,5,7,11]", "pyramid[-4:]")  # theirs of a ViT of twelve blocks; what stands for it elsewhere
_SLIDE = {"size": [512, 512], "stride": [341, 341], "shorter": 512}

# What holds when nobody says otherwise. The batch size is global, and learning rates are for it as they stand.
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
    probes={
        "linear": {"grid": _SWEEP},
        "mlp": {"grid": _SWEEP},
        "knn": {"grid": {"k": [10, 20, 100, 200]}},  # DINO's
        "logistic": {"grid": {"C": [float(f"1e{exponent}") for exponent in range(-6, 6)]}},
        "ncm": {"grid": {"metric": ["cosine", "euclidean"]}},
        "fewshot": {"grid": {"shots": [1, 2, 4, 8, 16]}, "seeds": [0, 1, 2, 3, 4]},
        "dense-linear": {"grid": _DENSE_SWEEP},
        "dense-multi": {"grid": _DENSE_SWEEP},
        "pixelshuffle": {"grid": _DECODER_SWEEP},
        "deeplab": {"grid": _DECODER_SWEEP},
        "deeplab@virb2021": {"grid": _DECODER_SWEEP},
        "siamese": {"grid": _DECODER_SWEEP},
        "lowshot": {"grid": {"C": [float(f"1e{exponent}") for exponent in range(-3, 4)]}, "seeds": [0, 1, 2]},
    },
    about="frozen features, no augmentation: ten learning rates by four weight decays in one pass, chosen on validation",
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        DEFAULT,
        Protocol(
            "virb2021",
            values={"num_epochs": 100, "batch_size": 32, "selection": "test-last"},
            probes={name: {"training_configs": {"adam-0.0001": {"optimizer": "adam", "lr": 1e-4}}} for name in _VIRB_PROBES},
            geometry=Geometry(size=(224, 224), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None),
            tasks=_VIRB_TASKS,
            variant="virb2021",
            about="the procedure published in 2021: the last epoch, every training config scored on the test split and the best one named",
        ),
        Protocol(
            "linear-sweep",
            probes={"linear": {"grid": _SWEEP}, "mlp": {"grid": _SWEEP}},
            about="as `default`, under a name that stays what it is should the default change",
        ),
        Protocol(
            "dino-linear",
            values={
                "probe": "linear",
                "features": _DINO_FEATURES[0],
                "num_epochs": 100,
                "batch_size": 1024,
                "selection": "test-best",
                "views": 10,
                "augment": "crop-flip",
            },
            probes={"linear": {"grid": _DINO_LINEAR}},
            lr_per=256,
            geometry=_DINO,
            options={"features": _DINO_FEATURES, "views": ("fresh",)},
            view_interpolation="bilinear",
            about="DINO's linear classifier: SGD, learning rates x batch / 256, cosine over 100 epochs, ten cached views of crops and "
            "flips (theirs: views: fresh), the best epoch on the test split as published; features: cls[-4:], cls[-1]+tokens[-1].mean or "
            "embedding",
        ),
        Protocol(
            "dino-knn",
            values={"probe": "knn", "selection": "test-best", "features": "embedding"},
            probes={"knn": {"grid": {"k": [10, 20, 100, 200], "temperature": [0.07]}}},
            geometry=_DINO,
            about="DINO's k-NN: cosine, votes of exp(similarity / 0.07), the best of k = 10, 20, 100, 200 on the test split as published",
        ),
        Protocol(
            "timet-linear",
            values={
                "probe": "dense-linear",
                "features": "tokens[-1]",
                "num_epochs": 50,
                "batch_size": 60,
                "selection": "test-best",
                "score_size": 100,
            },
            probes={
                "dense-linear": {
                    "training_configs": {
                        "sgd-lr0.01": {
                            "optimizer": "sgd",
                            "lr": 0.01,
                            "momentum": 0.9,
                            "weight_decay": 1e-4,
                            "scheduler": {"type": "StepLR", "per": "epoch", "step_size": 20, "gamma": 0.1},
                            "norm": "none",
                            "loss_size": 100,
                        }
                    }
                }
            },
            geometry=Geometry(size=(448, 448), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None),
            about="TimeT's linear segmentation: images squashed to 448, loss and score at 100 x 100 cells, SGD over 50 epochs, the best "
            "epoch on the reported split as published (theirs never shuffled)",
        ),
        Protocol(
            "ibot-linear",
            values={
                "probe": "dense-multi",
                "features": _IBOT_FEATURES[0],
                "num_epochs": 127,
                "batch_size": 16,
                "selection": "test-last",
                "views": "fresh",
                "augment": "scale-crop-flip-colour",
                "windows": _SLIDE,
            },
            probes={
                "dense-multi": {
                    "grid": {
                        "optimizer": ["adamw"],
                        "lr": [3e-5, 8e-5, 1e-4, 3e-4, 8e-4],
                        "weight_decay": [0.05],
                        "scheduler": [{"type": "Poly", "per": "step", "exponent": 1.0, "warmup": 1500}],
                        "norm": ["none"],
                        "loss_size": [512],
                    }
                }
            },
            geometry=Geometry(size=(512, 512), resize="squash", crop="none", crop_pct=1.0, interpolation="bilinear", view=None),
            options={"features": _IBOT_FEATURES},
            about="iBOT's linear segmentation of ADE20K: four maps concatenated, crops of 512 of images scaled by 0.5 to 2, sliding "
            "windows in the test; learning rates 3e-5 to 8e-4, all scored on the reported split as published",
        ),
    )
}


def no_protocol(name: str) -> str:
    """The message for a name that is no protocol's."""
    return f"no protocol {name!r}; there are {', '.join(sorted(PROTOCOLS))}"

"""What a pretraining method is: the views it wants, the networks it trains, its loss, and what moves besides the gradient.

A method is made from its options and keeps nothing that changes: what changes is handed in. So the engine can replay any step, add up
micro-batches and ranks, and save everything, without knowing the method:

    method = find_method("dino")(options)
    networks, state = method.build(), method.state()
    for each optimizer step:
        for each micro-batch:   out = method.loss(networks, views, state, progress)
                                (out.loss / n_micro).backward();  sums = add(sums, out.statistics)
        clip the gradients
        method.before_step(networks.student, progress)      # DINO: the last layer is frozen in the first epoch
        optimizer.step()
        method.after_step(networks, state, {name: sum over ranks of sums[name]}, progress)      # centre and EMA

A step that is skipped (not finite) skips ``after_step`` too, and nothing has moved (the engine puts the networks' buffers back). ``loss``
reaches the networks only by calling ``networks.student(...)`` and ``networks.teacher(...)``, so that the engine may wrap them (DDP,
``torch.compile``).

Randomness inside our own networks (drop path) is drawn from (seed, step, dataset index), see ``virb.pretraining.networks.noise``. Networks
of timm and torchvision draw theirs from torch's global generator: the engine seeds it for every micro-batch from (seed, step, rank).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

from virb.errors import UserError, did_you_mean
from virb.pretraining.catalogue import BUILTIN


@dataclass(frozen=True)
class CropRecipe:
    """How ``count`` views of an image are made: random resized crop (aspect 3/4 to 4/3, bicubic), then flip, colour, blur, solarisation.

    ``size``: side in pixels; ``scale``: share of the image's area, lowest and highest; the others are probabilities (``jitter`` is colour
    jitter of brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1; ``blur`` is Gaussian with a radius of 0.1 to 2 pixels).
    """

    size: int
    scale: tuple[float, float]
    count: int = 1
    flip: float = 0.5
    jitter: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0


@dataclass(frozen=True)
class ViewSpec:
    """All views of an image in order, the ``n_global`` global ones (that the teacher sees) first. ``squash``: (height, width) that an
    image is resized to before it is cropped, whatever its shape; None crops from the image as it is."""

    recipes: tuple[CropRecipe, ...]
    n_global: int
    squash: tuple[int, int] | None = None

    @property
    def views(self) -> tuple[CropRecipe, ...]:
        """One recipe per view, each with count 1 in effect."""
        return tuple(recipe for recipe in self.recipes for _ in range(recipe.count))


@dataclass(frozen=True)
class Views:
    """A micro-batch of B images, V views each.

    ``crops``: V tensors B x 3 x h x w, float, normalised, in the order of ``ViewSpec.views``.
    ``geometry``: B x V x 6 float32 on the CPU: top, left, height, width (pixels of the image that was cropped), flip (0 or 1), size (side
    of the view in pixels). On the CPU, because which patches match decides the shapes of what follows.
    ``samples``: (B,) int64 on the CPU, indices in the data set.
    """

    crops: tuple[Tensor, ...]
    n_global: int
    geometry: Tensor
    samples: Tensor

    def to(self, device: Any, non_blocking: bool = False) -> Views:
        """The crops on a device; geometry and samples stay."""
        return Views(tuple(crop.to(device, non_blocking=non_blocking) for crop in self.crops), self.n_global, self.geometry, self.samples)


class Matches(NamedTuple):
    """Patches of two views of the same images that show the same place, as flat lists of equal length: image (0 to B-1), token of the first
    view, token of the second. Tokens count as the networks give them: 0 is [CLS], 1 + row * columns + column a patch. [CLS] is matched with
    [CLS] in every image; a patch without a counterpart is in no list. int64, on the CPU."""

    image: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Progress:
    """Where the training is: all that schedules and draws are functions of, besides the options. ``step`` counts optimizer steps from 0."""

    step: int
    epochs: int
    steps_per_epoch: int
    seed: int = 0

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass
class Networks:
    """Student and teacher, with the state-dict keys of the original (``backbone.*``, ``head.*``). The teacher starts as the student and
    takes no gradients. ``notes``: what there is to tell of how they were built. Not frozen: the engine puts the wrapped ones here."""

    student: nn.Module
    teacher: nn.Module
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LossOut:
    """``loss``: float32 scalar, mean over the images of the micro-batch. ``logs``: scalars without gradient, means over the same images
    (``teacher_entropy`` and ``kl`` are there for all methods with prototypes; ``loss_weight``, what the weights of the cross-entropies in
    the loss add up to, where that is not 1). ``statistics``: tensors without gradient that *add up* over
    micro-batches and ranks, for ``after_step``."""

    loss: Tensor
    logs: dict[str, Tensor]
    statistics: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """A pretraining method; ``options`` is what ``Options`` describes, or a record that extends it with the engine's keys.

    ``Options`` has the method's own keys. A key of the engine's that it declares as well changes the engine's default (Patch-Wise DINO's
    batch size), so the whole record is ``class All(Method.Options, EngineOptions)``. ``aliases``: other names under which keys are taken
    from files and flags, with the key that each stands for. ``state_key``: under which a checkpoint keeps ``state().state_dict()``.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[BaseModel]]
    aliases: ClassVar[Mapping[str, str]] = {}
    state_key: ClassVar[str] = "dino_loss"

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def views(self) -> ViewSpec:
        """What augmentation makes of every image."""

    @abstractmethod
    def build(self) -> Networks:
        """New networks on the CPU, drawn from torch's global generator (that the engine seeds, alike on all ranks). UserError for an
        architecture that does not exist or does not fit the views."""

    @abstractmethod
    def state(self) -> nn.Module:
        """What the method carries from step to step, as buffers (DINO: the centre), at its start."""

    @abstractmethod
    def loss(self, networks: Networks, views: Views, state: nn.Module, progress: Progress) -> LossOut:
        """Forward of both networks and the loss; changes nothing. Called under the engine's autocast."""

    @abstractmethod
    def after_step(self, networks: Networks, state: nn.Module, statistics: Mapping[str, Tensor], progress: Progress) -> None:
        """Moves teacher and state after the optimizer's step; ``statistics`` are summed over the step's micro-batches and ranks."""

    def before_step(self, student: nn.Module, progress: Progress) -> None:
        """Last change of the gradients, after clipping."""
        return  # most methods change nothing

    def parameter_groups(self, student: nn.Module) -> list[dict[str, Any]]:
        """For the optimizer. The first group follows the engine's schedule of weight decay, the others keep theirs (0, here)."""
        from virb.pretraining.optim import parameter_groups

        return parameter_groups(student)

    def values(self, progress: Progress) -> dict[str, float]:
        """The method's own schedules at this step, for the log (``momentum``, ``teacher_temp``)."""
        return {}

    @property
    def n_outputs(self) -> int | None:
        """K where the teacher gives distributions over K prototypes: at collapse the loss is ln K (times ``loss_weight``) and the teacher's
        entropy 0 or ln K."""
        return None


AnyMethod = TypeVar("AnyMethod", bound=type[Method])

_METHODS: dict[str, type[Method]] = {}


def register_method(name: str) -> Callable[[AnyMethod], AnyMethod]:
    """Class decorator: ``virb pretrain name`` finds it where its module was imported, ``virb pretrain package.module:name`` imports it."""

    def register(method: AnyMethod) -> AnyMethod:
        known = _METHODS.get(name, method)
        if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
            raise UserError(f"two pretraining methods are named {name}: {known.__module__} and {method.__module__}")
        method.name = name
        _METHODS[name] = method
        return method

    return register


def registered() -> Mapping[str, type[Method]]:
    """What was registered so far."""
    return _METHODS


def method_names() -> list[str]:
    _load_builtin()
    return sorted(_METHODS)


def find_method(name: str) -> type[Method]:
    """UserError when there is none of this name."""
    _load_builtin()
    if name not in _METHODS:
        raise UserError(f"no pretraining method {name!r}{did_you_mean(name, _METHODS)} (methods: {', '.join(sorted(_METHODS))})")
    return _METHODS[name]


def _load_builtin() -> None:
    for method in BUILTIN:
        importlib.import_module(method.module)

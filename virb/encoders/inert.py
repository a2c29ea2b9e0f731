"""What an untrusted pickle may hold, as data: names that are never resolved, inert answers to calls that are known to be harmless."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from virb.errors import ViRBError


class Refused(ViRBError):
    """The file asks for something that is not known to be harmless; ``name`` is what it wanted."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"asks for {name}, which is code or unknown data; ViRB reads only tensors and plain data")


class Damaged(ViRBError):
    """The bytes are not a whole pickle."""


@dataclass(frozen=True)
class Global:
    """A name in the file: never resolved."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a known harmless class (settings, enum members, paths, whole modules of torch.nn): its class by name, what it was
    made of, and its attributes."""

    kind: str
    arguments: tuple[Any, ...] = ()
    fields: dict[Any, Any] = field(default_factory=dict)


class Items(dict):
    """A dictionary of another class (OrderedDict, AttrDict, DictConfig ...); its attributes are kept apart."""

    fields: Any = None


class Things(list):
    """A list of another class, or a set."""

    fields: Any = None


# Classes that only carry settings. Exact names first; then packages of which any class may stand in a file as an inert record.
_DICTIONARIES = {
    *("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"),
    *("vissl.config.attr_dict.AttrDict", "vissl.utils.hydra_config.AttrDict", "fvcore.common.config.CfgNode", "yacs.config.CfgNode"),
    *("attrdict.dictionary.AttrDict", "easydict.EasyDict", "addict.addict.Dict", "addict.Dict", "munch.Munch", "box.box.Box"),
    *("mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict", "ml_collections.config_dict.ConfigDict"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
    *("lightning.fabric.utilities.data.AttributeDict", "lightning.pytorch.utilities.parsing.AttributeDict"),
}
_LISTS = {"builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset", "collections.deque"}
_NUMBERS: dict[str, type] = {f"builtins.{kind.__name__}": kind for kind in (int, float, bool, str, complex, bytes, bytearray)}
_RECORDS = {
    *("argparse.Namespace", "types.SimpleNamespace", "builtins.object", "builtins.slice", "builtins.range"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.Path"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath", "uuid.UUID", "decimal.Decimal", "fractions.Fraction"),
    *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone"),
    *("torch.Size", "torch.device", "torch.torch_version.TorchVersion", "typing.Any"),
}
_PACKAGES = (
    *("classy_vision", "vissl", "omegaconf", "hydra", "pytorch_lightning", "lightning", "lightning_fabric", "lightly", "solo"),
    *("torch.optim", "torch.cuda.amp.grad_scaler", "torch.amp.grad_scaler", "torch.nn.modules", "torchvision.models"),
)
_COPY = {"copyreg._reconstructor", "copy_reg._reconstructor"}
NEW = {"copyreg.__newobj__", "copyreg.__newobj_ex__"}
_LATIN = {"_codecs.encode"}  # how protocol 2 writes bytes
_ARRAY = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_SCALAR = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
_NUMPY = {f"numpy.{name}" for name in ("dtype", "ndarray", "float64", "float32", "float16", "int64", "int32", "int16", "int8")}
_NUMPY |= {"numpy.bool_", "numpy.bool", "numpy.uint8", "numpy.uint16", "numpy.uint32", "numpy.uint64", "numpy.random.mtrand.RandomState"}
_NUMPY |= {f"numpy.random._pickle.__{kind}_ctor" for kind in ("randomstate", "bit_generator", "generator")}
_NUMPY |= {f"numpy.random._{kind.lower()}.{kind}" for kind in ("MT19937", "PCG64", "Philox", "SFC64")}
_EXACT = {*_DICTIONARIES, *_LISTS, *_NUMBERS, *_RECORDS, *_COPY, *NEW, *_LATIN, *_ARRAY, *_SCALAR, *_BUFFER, *_NUMPY}
TORCH_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128")
_LARGEST = 1 << 34  # bytes that one array inside a pickle may have


def is_known(what: Global) -> bool:
    """Whether a name is known to be harmless data. Never a dotted path into a module (``argparse`` / ``_os.system``)."""
    name = str(what)
    in_package = any(what.module == package or what.module.startswith(f"{package}.") for package in _PACKAGES)
    is_dtype = what.module == "torch" and what.name in TORCH_DTYPES
    is_numpy = what.module == "numpy.dtypes" and what.name.endswith("DType")
    return what.name.isidentifier() and (name in _EXACT or in_package or is_dtype or is_numpy)


def construct(what: Global, arguments: tuple[Any, ...]) -> Any:
    """The inert answer to ``what(*arguments)``."""
    name = str(what)
    if name in _DICTIONARIES:
        return _items(arguments)
    if name in _LISTS:
        return Things(arguments[0]) if arguments and isinstance(arguments[0], list | tuple) else Things()
    if name in _NUMBERS:
        return _number(_NUMBERS[name], arguments)
    if name in _LATIN:
        if not isinstance(arguments[0], str):
            raise TypeError("bytes of something that is no text")
        return arguments[0].encode("latin-1")
    if name in _COPY:
        return construct(arguments[0], ()) if isinstance(arguments[0], Global) else Record("object")
    if name == "numpy.dtype":
        return _new_dtype(arguments[0])
    if name in _ARRAY:
        return Array()
    if name in _SCALAR:
        kind, data = _dtype(arguments[0]), _raw(arguments[1])
        return np.frombuffer(data, kind, 1)[0].item()
    if name in _BUFFER:
        data, kind, shape, order = arguments
        return np.frombuffer(_raw(data), _dtype(kind)).reshape(shape, order="F" if order == "F" else "C").copy()
    return Record(name, arguments)


def _items(arguments: tuple[Any, ...]) -> Items:
    """From ``OrderedDict([[key, value], ...])`` of protocols 0 and 1, from a mapping, or empty (a default factory is dropped)."""
    made = Items()
    for argument in arguments:
        if isinstance(argument, dict):
            made.update(argument)
        elif isinstance(argument, list):
            made.update({plain_key(pair[0]): pair[1] for pair in argument if isinstance(pair, list | tuple) and len(pair) == 2})
    return made


def _number(kind: type, arguments: tuple[Any, ...]) -> Any:
    plain = all(isinstance(item, int | float | str | bytes | list) for item in arguments[:1])
    if not plain or (arguments and kind in (bytes, bytearray) and not isinstance(arguments[0], bytes | str | list)):
        return Record(kind.__name__)
    if kind in (bytes, bytearray) and arguments and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    return kind(*arguments[:1])


def plain_key(key: Any) -> Any:
    """Keys are plain: what hashes by contents of unknown depth is set by its identity."""
    plain = isinstance(key, str | int | float | bool | bytes | Global) or key is None
    if plain or (isinstance(key, tuple) and all(isinstance(part, str | int | float | bool | None) for part in key)):
        return key
    return f"<{type(key).__name__} {id(key)}>"


# Arrays of numpy, which are pickled in two steps: an empty one, then its state


class Array:
    """An array before its state."""

    def filled(self, state: Any) -> Any:
        _, shape, kind, fortran, data = state
        dtype = _dtype(kind)
        if any(not isinstance(side, int) or side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > _LARGEST:
            raise ValueError("an array of an impossible shape")
        return np.frombuffer(_raw(data), dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C").copy()


def _new_dtype(code: Any) -> Record:
    if not isinstance(code, str) or np.dtype(code).kind not in "biufcSU":
        raise Refused(f"the numpy dtype {str(code)[:20]}")
    return Record("numpy.dtype", (code,))


def _dtype(kind: Any) -> np.dtype[Any]:
    if not (isinstance(kind, Record) and kind.kind == "numpy.dtype"):
        raise TypeError("no dtype")
    order = kind.fields.get("order")
    found = np.dtype(kind.arguments[0])
    return found.newbyteorder(order) if order in ("<", ">") else found


def _raw(data: Any) -> bytes:
    if isinstance(data, str):  # Python 2 wrote strings
        return data.encode("latin-1")
    if not isinstance(data, bytes | bytearray):
        raise Refused(f"an array of {type(data).__name__}s")
    return bytes(data)

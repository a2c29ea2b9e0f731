"""CIFAR-10 and CIFAR-100, as Python pickles or as binary files."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, below

for _n, _folders in ((10, ("cifar-10-batches-py", "cifar-10-batches-bin")), (100, ("cifar-100-python", "cifar-100-binary"))):
    for _kind, _folder in zip(("python", "binary"), _folders, strict=True):
        _file = f"cifar-{_n}-{_kind}.tar.gz"
        add(f"cifar{_n}", _folder, Part("data", (_file,), below(_folder)), title="" if _kind == "python" else _file)

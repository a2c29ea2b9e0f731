"""How much host memory loading takes: the network's own tensors and the file's, and not a third copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from virb.encoders.load import load_encoder

CHILD = """
import sys
from pathlib import Path
from virb.encoders.load import load_encoder

def resident(field):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)) * 1024

load_encoder(sys.argv[1])  # a small one: what imports and libraries take
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
encoder = load_encoder(sys.argv[2])
print((resident("VmHWM") - before) / sum(p.nbytes for p in encoder.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_loading_holds_the_weights_twice_and_no_more(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for arch in ("vit_tiny", "vit_base"):
        state = {key: value.clone() for key, value in load_encoder({"arch": arch, "weights": "random"}).network.state_dict().items()}
        if kind == "pth":
            torch.save({"teacher": {f"backbone.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / f"{arch}.pth")
        else:
            save_file(state, tmp_path / f"{arch}.safetensors")
    assert (tmp_path / f"vit_base.{kind}").stat().st_size > 300e6
    call = [sys.executable, "-c", CHILD, *(str(tmp_path / f"{arch}.{kind}") for arch in ("vit_tiny", "vit_base"))]
    done = subprocess.run(call, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert 1 < float(done.stdout) < 2.5

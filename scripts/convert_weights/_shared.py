"""Makes ViRB importable from a checkout that is not installed, and hands on its converter."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from virb.encoders.convert import main

__all__ = ["main"]

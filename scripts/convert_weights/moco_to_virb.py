"""MoCo v1 or v2 checkpoint to ViRB weights: python scripts/convert_weights/moco_to_virb.py IN OUT"""

from _shared import main

if __name__ == "__main__":
    raise SystemExit(main("moco"))

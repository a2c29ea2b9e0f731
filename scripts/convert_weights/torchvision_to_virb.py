"""torchvision checkpoint to ViRB weights: python scripts/convert_weights/torchvision_to_virb.py IN OUT"""

from _shared import main

if __name__ == "__main__":
    raise SystemExit(main("torchvision"))

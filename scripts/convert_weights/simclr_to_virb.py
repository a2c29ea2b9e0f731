"""SimCLR (VISSL or PyTorch-Lightning) checkpoint to ViRB weights: python scripts/convert_weights/simclr_to_virb.py IN OUT"""

from _shared import main

if __name__ == "__main__":
    raise SystemExit(main("simclr"))

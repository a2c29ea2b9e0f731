"""Training encoders without labels: one engine, methods plugged in (DINO, Patch-Wise DINO)."""

"""Metrics: per-sample statistics that add up, and the number their sum means."""

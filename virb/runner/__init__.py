"""Launchers of ready units, the worker that does one unit, and the progress a user sees."""

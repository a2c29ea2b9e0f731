"""Probes: the methods that answer a task from a frozen encoder."""

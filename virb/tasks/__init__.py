"""Tasks: a dataset, a probe and metrics under one id. The catalogue has a file per family."""

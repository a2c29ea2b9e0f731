"""Tables that people read: encoders by tasks for the terminal, and ``results.csv`` for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from virb.io import write_atomic
from virb.metrics.base import find_metric
from virb.results.load import load_results

MISSING, OLD = "-", "(old)"
CHOSEN_ON_TEST = {"test-last": "last epoch, choices made on test", "test-best": "choices made on test"}


def leaderboard(results: pd.DataFrame, encoders: Sequence[str] | None = None, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """Encoders x task labels of texts such as ``93.1 ±2.6`` (half the width of the 95 % interval; ``-`` where there is no result).

    ``results`` are chosen configs with their primary metric, as ``load_results`` gives them. ``encoders`` and ``labels`` give the order,
    and the rows and columns that must be there (default: those of ``results``). Columns are (label, what is measured: ``top-1 % ↑``, with
    the selection where choices were not made on validation: ``top-1 % ↑, test-best``). ``(old)`` follows a number whose newer attempt,
    with other settings, failed.
    """
    best = results[results["primary"].fillna(False).astype(bool)]
    encoders = list(dict.fromkeys(best["encoder"])) if encoders is None else list(encoders)
    labels = list(dict.fromkeys(best["label"])) if labels is None else list(labels)
    columns, heads = {}, []
    for number, label in enumerate(labels):
        rows = best[best["label"] == label]
        heads.append((label, _measure(rows)))
        cells = {encoder: [_cell(row) for _, row in group.iterrows()] for encoder, group in rows.groupby("encoder", sort=False)}
        columns[number] = [" | ".join(cells.get(encoder, [MISSING])) for encoder in encoders]
    table = pd.DataFrame(columns, index=pd.Index(encoders, name="encoder"))
    table.columns = pd.MultiIndex.from_tuples(heads, names=["task", "metric"]) if heads else table.columns
    return table


def text_table(results: pd.DataFrame, encoders: Sequence[str] | None = None, labels: Sequence[str] | None = None) -> list[str]:
    """``leaderboard`` as aligned lines, two of them for the head; empty when there is nothing to show."""
    table = leaderboard(results, encoders, labels)
    if table.empty:
        return []
    first = ["", "", *map(str, table.index)]
    columns = [[*map(str, head), *table.iloc[:, number]] for number, head in enumerate(table.columns.to_flat_index())]
    padded = [[text.ljust(max(map(len, column))) for text in column] for column in (first, *columns)]
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def footnotes(results: pd.DataFrame) -> str:
    """How the numbers of the table were chosen, true of every column, and what its marks mean."""
    selections = set(results["selection"].dropna())
    on_test = [f"{name}: {text}" for name, text in CHOSEN_ON_TEST.items() if name in selections]
    if on_test and "val" not in selections:
        notes = on_test if len(on_test) > 1 else [on_test[0].partition(": ")[2]]
    else:
        notes = ["choices made on validation" + (" unless the column says otherwise" if on_test else ""), *on_test]
    if results["newer_failed"].notna().any():
        notes.append(f"{OLD}: of earlier settings, the newer attempt failed")
    return "; ".join(notes)


def format_value(value: float, low: float | None, high: float | None, unit: str | None) -> str:
    """``93.1 ±2.6`` for fractions (unit %), three significant digits for other units; without ± where there is no interval."""
    if _unknown(value):
        return MISSING
    scale = 100.0 if unit == "%" else 1.0
    half = None if _unknown(low) or _unknown(high) else (float(high) - float(low)) / 2 * scale  # type: ignore[arg-type]
    shown = value * scale
    decimals = 1 if unit == "%" else max(0, 2 - math.floor(math.log10(abs(shown)))) if shown else 2
    return f"{shown:.{decimals}f}" if half is None else f"{shown:.{decimals}f} ±{half:.{decimals}f}"


def write_csv(out: Path | str) -> Path:
    """Writes ``<out>/results.csv``: a row per encoder, task, training config and metric, the chosen configs marked. Atomic."""
    path = Path(out) / "results.csv"
    table = load_results(out, all_configs=True, metrics="all")
    write_atomic(path, table.to_csv(index=False, lineterminator="\n"))
    return path


def _measure(rows: pd.DataFrame) -> str:
    """``top-1 % ↑``: what the column holds and which way is better; choices made on test are named, for they do not compare."""
    texts = []
    for name, unit, up, selection in zip(rows["metric"], rows["unit"], rows["higher_is_better"], rows["selection"], strict=True):
        if pd.isna(name):
            texts.append("unknown metric")
            continue
        try:
            title = find_metric(name).title
        except (KeyError, ImportError, AttributeError):  # a metric of somebody else's: the name does
            title = name
        text = " ".join(part for part in (title, unit, "↑" if up else "↓") if part)
        texts.append(f"{text}, {selection}" if selection in CHOSEN_ON_TEST else text)
    return " | ".join(dict.fromkeys(texts))


def _cell(row: pd.Series) -> str:
    """``76.8 ±0.4``, and beside a published number what it is and how far this one is from it; ``!`` where that is beyond its tolerance."""
    unit = None if pd.isna(row["unit"]) else row["unit"]
    text = format_value(row["value"], row["ci_low"], row["ci_high"], unit)
    difference = row.get("reference_difference")
    if difference is None or _unknown(difference):
        return text if pd.isna(row["newer_failed"]) else f"{text} {OLD}"
    scale, decimals = (100.0, 1) if unit == "%" else (1.0, 3)
    published = f"published {scale * row['reference']:.{decimals}f}, {scale * difference:+.{decimals}f}"
    return f"{text} ({published}{'' if abs(difference) <= row['reference_tolerance'] else '!'})"


def _unknown(number: float | None) -> bool:
    return number is None or not math.isfinite(number)

"""``virb visualize``: pictures of what methods see. ``match``: which patches of two views of an image belong together."""

from __future__ import annotations

import argparse
from pathlib import Path

from virb.cli.console import columns, note, say
from virb.errors import UserError


def visualize(options: argparse.Namespace) -> int:
    return {"match": _match}[options.action](options)


def _match(options: argparse.Namespace) -> int:
    from virb.io import make_folder
    from virb.pretraining.dino_options import DINOOptions
    from virb.visualize.matches import draw_matches, matched_views

    out: Path = options.out.expanduser()
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the picture is a PNG; name it so")
    first, second = options.views
    usual = DINOOptions.model_validate({}).model_dump()
    matched = matched_views(
        options.image,
        patch_size=options.patch_size,
        sizes=tuple(options.sizes) if options.sizes else (usual[f"{first}_crops_size"], usual[f"{second}_crops_size"]),
        scales=(usual[f"{first}_crops_scale"], usual[f"{second}_crops_scale"]),
        rule=options.matching,
        min_overlap=options.min_overlap,
        side=options.squash,
        seed=options.seed,
        colours=not options.plain,
    )
    make_folder(out.parent)
    try:
        draw_matches(matched).save(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from error
    for name, crop in zip((f"first, {first}", f"second, {second}"), matched.crops, strict=True):
        box = f"rows {crop.top} to {crop.top + crop.height}, columns {crop.left} to {crop.left + crop.width} of the image"
        say(f"{name} view: {box}{', flipped' if crop.flip else ''}")
    rows = [("pair", "first", "second", "overlap")]
    rows += [
        (str(i), str(a), str(b), f"{share:.2f}")
        for i, ((a, b), share) in enumerate(zip(matched.pairs.tolist(), matched.overlap.tolist(), strict=True), 1)
    ]
    for line in columns(rows):
        say(line)
    if not len(matched.pairs):
        why = "no two patches share so much" if options.min_overlap else "the views do not overlap"
        note(f"{why}: they are compared by [CLS] alone; another --seed draws others")
    say(f"{len(matched.pairs)} pairs of patches (counted from 1, row by row; 0 is [CLS]) -> {out}")
    return 0

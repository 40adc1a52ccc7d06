"""LAION-400M and LAION-2B: lists of URLs in parquet files, or the shards that img2dataset built from them."""

from __future__ import annotations

from dataset.prepare.declarations import DataSet, Urls

COLUMNS = {
    "url": ("url",),
    "text": ("text", "caption", "top_caption"),
    "width": ("width",),
    "height": ("height",),
    "similarity": ("similarity",),
    "safety": ("nsfw",),
    "unsafe": ("punsafe",),
    "watermark": ("pwatermark",),
}
"""Names of columns, which differ between versions."""

LAION = DataSet(
    name="laion",
    title="LAION-400M and LAION-2B-en",
    home="laion.ai",
    licence="lists CC BY 4.0; images under their own terms",
    files={
        "laion*/*.parquet": "URLs, texts, sizes, similarities, safety tags; one or both of the sets",
        "laion*/*.tar": "or already downloaded shards of img2dataset with their *_stats.json; no lists are needed then",
    },
    sizes={},
    makes=Urls(
        columns=COLUMNS,
        in_shards={**COLUMNS, "width": ("original_width", "width"), "height": ("original_height", "height")},
    ),
    group="1b",
    paper="1.3B pairs",
)

"""LAION-400M and LAION-2B: lists of URLs in parquet files, or the shards that img2dataset made from them."""

from __future__ import annotations

from dataset.prepare.sets.base import DataSet, ParquetPairs

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
    title="LAION-400M and LAION-2B-en",
    home="laion.ai",
    licence="lists CC BY 4.0; images under their own terms",
    files={
        "laion*/*.parquet": "URLs, texts, sizes, similarities, tags of safety; one or both of the sets",
        "laion*/*.tar": "shards of img2dataset with their *_stats.json, downloaded before; then no lists are needed",
    },
    sizes={},
    makes=ParquetPairs(
        columns=COLUMNS,
        in_shards={**COLUMNS, "width": ("original_width", "width"), "height": ("original_height", "height")},
    ),
)

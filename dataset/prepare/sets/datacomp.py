"""DataComp-1B and CommonPool (Gadre et al., 2023): lists of URLs and texts in parquet files.

The metadata at huggingface.co/datasets/mlfoundations/datacomp_1b (and datacomp_small and so on) have the columns ``uid``,
``url``, ``text``, ``original_width``, ``original_height``, ``clip_b32_similarity_score``, ``clip_l14_similarity_score``,
``face_bboxes`` and ``sha256``.
"""

from __future__ import annotations

from dataset.prepare.declarations import DataSet, Urls

COLUMNS = {
    "url": ("url",),
    "text": ("text", "caption"),
    "width": ("original_width",),
    "height": ("original_height",),
    "similarity": ("clip_l14_similarity_score", "clip_b32_similarity_score"),
}

DATACOMP = DataSet(
    name="datacomp",
    title="DataComp-1B and CommonPool",
    home="huggingface.co/datasets/mlfoundations/datacomp_1b",
    licence="lists CC BY 4.0; images under their own terms",
    files={
        "datacomp*/*.parquet": "URLs, texts, sizes, similarities",
        "datacomp*/*.tar": "or already downloaded shards of img2dataset with their *_stats.json; no lists are needed then",
    },
    sizes={},
    makes=Urls(columns=COLUMNS, in_shards=COLUMNS),
)

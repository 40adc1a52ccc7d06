"""Which models take which call. Plain data: importing it costs nothing."""

TASKS = {
    "caption": "captioning",
    "answer": "vqa or video_qa",
    "locate": "pretrain or grounding",
    "match": "pretrain or retrieval",
    "embed_images": "pretrain or retrieval",
    "embed_texts": "pretrain or retrieval",
    "compare": "nlvr",
    "explain": "pretrain or retrieval",
}
"""The tasks whose models take a call."""

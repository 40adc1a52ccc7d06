"""Which models take which call, and which files are images or videos. Plain data: importing it costs nothing."""

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

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""Of the files of a folder; a file that is named is read whatever it is called."""

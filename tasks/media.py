"""Base class of the tasks whose data are images or videos."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from dataset.media.sources import ImageSource, VideoSource
from dataset.media.video import check_held_out
from dataset.media.views import EvaluationView, check_medium
from dataset.tasks.finetune import frame_sampler
from tasks.base import B, M, Parts, video_frames
from tasks.config import MediaConfig
from tasks.finetune import FineTuneTask, HeldOut

G = TypeVar("G", bound=MediaConfig)


class MediaTask(FineTuneTask[G, M, B]):
    """A fine-tuning task for images, or for videos if ``model.vision.video`` is set."""

    takes_videos = True

    def __init__(self, config: G, parts: Parts[M, B], held_out: HeldOut):
        super().__init__(config, parts, held_out)
        for key, items in held_out.by_key().items():
            sources = self.sources(items)
            check_medium(sources, video_frames(config), key)
            videos = [source for source in sources if isinstance(source, VideoSource)]
            check_held_out(videos, config.data.video, config.data.max_pixels, key)

    @staticmethod
    @abstractmethod
    def sources(items: Any) -> Sequence[ImageSource | VideoSource]:
        """Returns the images or videos of a split."""

    @staticmethod
    def evaluation_view(config: G) -> EvaluationView:
        data, size = config.data, config.model.vision.image_size
        videos, shuffled = frame_sampler(data, video_frames(config)), config.evaluation.shuffle_frames
        return EvaluationView(size, data.max_pixels, videos, shuffle_frames=shuffled, pixels=data.pixels)

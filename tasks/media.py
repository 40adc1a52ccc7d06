"""Base class of the tasks whose data are images or videos."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pydantic import Field

from dataset.media.video import VideoSource, check_held_out
from dataset.media.views import EvaluationView, check_medium
from dataset.records.schema import ImageSource
from dataset.tasks.finetune import MediaDataConfig, frame_sampler
from tasks.base import B, M, Parts, video_frames
from tasks.finetune import FineTuneConfig, FineTuneTask, HeldOut, HeldOutConfig, S


class MediaEvaluationConfig(HeldOutConfig[S], Generic[S]):
    """Held-out splits of images or videos, and the order of video frames."""

    shuffle_frames: bool = Field(
        False, description="shuffle the frames of videos, to test whether the model uses their order"
    )


class MediaConfig(FineTuneConfig):
    """Config sections of a run on images or videos; each task narrows their types."""

    data: MediaDataConfig
    evaluation: MediaEvaluationConfig[Any]


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

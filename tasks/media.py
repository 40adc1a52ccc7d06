"""What the tasks share whose data are images or videos."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pydantic import Field

from dataset.finetune import EvaluationView, MediaDataConfig, check_medium, frame_sampler
from dataset.records import ImageSource
from dataset.video import VideoSource, check_held_out
from engine.checkpoint import Checkpoint
from tasks.common import FineTuneConfig, FineTuneTask, HeldOutConfig, M, S


class MediaEvaluationConfig(HeldOutConfig[S], Generic[S]):
    """Also how videos are shown."""

    shuffle_frames: bool = Field(
        False, description="show videos with their frames out of order: does the model look at the order?"
    )


class MediaConfig(FineTuneConfig):
    """The sections of such a run; tasks narrow their types."""

    data: MediaDataConfig
    evaluation: MediaEvaluationConfig[Any]


G = TypeVar("G", bound=MediaConfig)


class MediaTask(FineTuneTask[G, M]):
    """A fine-tuning task of images, or where ``model.vision.video`` says so of videos."""

    takes_videos = True

    def __init__(self, config: G, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        super().__init__(config, checkpoint, trains=trains)
        for key, items in self.splits.items():
            sources = self.sources(items)
            check_medium(sources, self.frames, key)
            videos = [source for source in sources if isinstance(source, VideoSource)]
            check_held_out(videos, config.data.video, config.data.max_pixels, key)

    @staticmethod
    @abstractmethod
    def sources(items: Any) -> Sequence[ImageSource | VideoSource]:
        """The images or videos of a split."""

    def evaluation_view(self) -> EvaluationView:
        data, size = self.config.data, self.config.model.vision.image_size
        videos = frame_sampler(data.video, self.frames, data.max_pixels)
        return EvaluationView(size, data.max_pixels, videos, shuffle_frames=self.config.evaluation.shuffle_frames)

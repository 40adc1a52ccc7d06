"""The config sections of the data: texts, augmentation, shards, the streams of pre-training, and the splits of each task."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from batches import LONG, BatchSize
from utils.addresses import is_hub, is_url
from utils.config import MAY_CHANGE, Config
from utils.errors import UserError
from utils.inputs import InputFile, InputFolder, InputShards, InputWeightedShards, WeightedShards


class TextLimits(Config):
    """Maximum length of a text."""

    max_tokens: int = Field(
        30, ge=3, description="maximum number of tokens in a text, including [CLS] and [SEP]; the rest is cut off"
    )
    max_words: int | None = Field(
        None,
        ge=1,
        description="maximum number of words in a text, split at spaces; the rest is cut off; null: max_tokens, as in the "
        "authors' code",
    )


class TextDataConfig(TextLimits):
    """Length and masking of texts (sections 3.3 and 4.2 of the paper)."""

    mask_prob: float = Field(0.5, gt=0, le=1, description="fraction of a text's tokens to mask")
    max_masks: int = Field(12, ge=1, description="maximum number of masked tokens in a text")
    whole_word: bool = Field(True, description="mask all pieces of a word together")
    skipgram_prob: float = Field(0.2, ge=0, le=1, description="probability that a masked span has several tokens")
    skipgram_size: int = Field(3, ge=2, description="maximum number of tokens in a masked span with several tokens")
    language: str | None = Field(
        None, description="language of the text if a record has several; null: a random language each time"
    )


WORKER_TIMEOUT_S = 600.0
"""Default time limit for a batch, in seconds."""


class LoadingConfig(Config):
    """Settings for loading batches that all tasks have in common."""

    text: TextLimits = Field(default_factory=TextLimits, description="maximum length of a text")
    workers: Annotated[int, MAY_CHANGE] = Field(
        4, ge=0, description="number of processes that make batches; 0: make batches in the training process"
    )
    worker_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        WORKER_TIMEOUT_S,
        gt=0,
        description="time in seconds after which a worker that has not made a batch is killed and replaced",
    )
    max_broken: Annotated[float, MAY_CHANGE] = Field(
        0.01, ge=0, le=1, description="maximum fraction of broken records; the run stops if it is exceeded"
    )
    max_pixels: int = Field(80_000_000, ge=1, description="images with more pixels are broken records")
    pixels: Literal["shown", "stored"] = Field(
        "shown",
        description="shown: apply the EXIF orientation (except to images with boxes, because boxes refer to stored pixels) and "
        "put transparent pixels on white; stored: do neither, as in the authors' code",
    )

    @property
    def micro_batch(self) -> BatchSize:
        """Size of a micro-batch. The config class of each task defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define micro_batch")

    @property
    def records_per_batch(self) -> int:
        """Number of records of the leading stream that a rank reads for a micro-batch. The leading stream is the first of images,
        regions, videos, texts and translations."""
        return self.micro_batch.size

    def check_ranks(self, ranks: int) -> None:
        """Raises :class:`UserError` if the data cannot be divided among this number of ranks. By default, all numbers are
        allowed."""


class RegionAugmentConfig(Config):
    """Augmentation of an image with boxes. The boxes determine the crop, and RandAugment uses only the colour operations."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    rand_augment_ops: int = Field(
        2, ge=0, description="number of RandAugment operations per image; 0 turns RandAugment off"
    )
    rand_augment_magnitude: int = Field(7, ge=0, le=10, description="strength of the RandAugment operations")


class AugmentConfig(RegionAugmentConfig):
    """Augmentation of a training image. The defaults are those of the authors' code.

    To use whole images, set ``scale: [1, 1]``, and ``ratio`` to a range that includes the ratios of the images.
    """

    scale: tuple[float, float] = Field(
        (0.2, 1.0), description="minimum and maximum fraction of an image's area in a crop"
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3),
        description="minimum and maximum ratio of width to height of a crop, relative to the ratio of the model's input",
    )

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale = {self.scale} must be 0 < min <= max <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio = {self.ratio} must be 0 < min <= max")
        return self


Backend = Literal["av", "decord"]


class VideoReadingConfig(Config):
    """How the frames of videos are chosen and decoded."""

    backend: Backend = Field("av", description="decoder of video files: av (PyAV) or decord")
    frames_per_second: float = Field(
        1.0,
        gt=0,
        description="candidate frames per second of a video file, from which the frames for the model are chosen",
    )
    time_limit_s: float = Field(
        60.0, gt=0, description="time limit for reading a video, in seconds; a slower video counts as broken"
    )
    same_view: bool = Field(
        False,
        description="augment all frames of a video in the same way (the authors' code draws crop, flip and colours per frame)",
    )


BLOCK_BYTES = 1 << 20
"""Size of a block, and of a request, in bytes. Two nodes that read neighbouring runs of records both fetch the block on the
boundary."""


LONGEST_WAIT_S = 20.0


class RemoteConfig(Config):
    """Settings for remote shards."""

    cache: str | None = Field(
        None,
        description="local folder that caches blocks of remote shards and decoded rows of Parquet shards; null: a folder in the "
        "user's cache folder",
    )
    cache_gb: float = Field(
        20.0, ge=0.25, description="maximum size of the cache in GB, for all processes of this machine"
    )
    timeout_s: float = Field(
        60.0, gt=0, description=f"timeout of a request in seconds; a request is at most {BLOCK_BYTES >> 20} MiB"
    )
    ahead: int = Field(
        4,
        ge=0,
        le=64,
        description="maximum number of concurrent requests of a worker that prefetch records; 0: do not prefetch",
    )
    retry_minutes: float = Field(
        8.0,
        ge=0,
        description=f"how long a failed request is retried, with increasing delays of at most {LONGEST_WAIT_S:g} s",
    )
    hub: Literal["stream", "download"] = Field(
        "stream",
        description="how the files of hf:ORG/NAME are read if they are not in the Hub cache; stream: parts of them, when records "
        "are read; download: all of them, into the Hub cache, before the run begins",
    )
    protocols: list[str] = Field(
        ["http", "https", "s3"],
        description="protocols that URLs may have; other protocols of fsspec can be added, but are untested",
    )


BLOCK_RECORDS = 1000
"""Default number of records in a block."""


def check_lanes(lanes: int, ranks: int, key: str) -> None:
    """Raises :class:`UserError`, naming the lanes' config ``key``, if the lanes cannot be divided equally among the ranks."""
    if lanes % ranks:
        divisors = [str(number) for number in range(1, lanes + 1) if lanes % number == 0]
        supported = f"{', '.join(divisors[:-1])} or {divisors[-1]} ranks" if len(divisors) > 1 else "1 rank"
        raise UserError(
            f"{key} = {lanes}: the lanes cannot be divided equally among {ranks} ranks",
            remedy=f"run on {supported}, or set {key} to a multiple of {ranks} before the run begins",
        )


ImageIs = Literal["auto", "path", "base64"]


CaptionLength = Literal["short", "long", "sample", "both"]
"""Which texts of an image or a box are used: ``caption``, ``long_caption``, one of the two at random, or both."""


HardNegativeSource = Literal["given", "exchanged", "replaced"]


class HardNegativesConfig(Config):
    """Texts that are wrong about an image though they resemble its caption. They are added to the image's contrastive and
    matching losses."""

    count: int = Field(1, ge=1, le=16, description="maximum number of hard negatives for each text")
    sources: tuple[HardNegativeSource, ...] = Field(
        ("given", "exchanged", "replaced"),
        min_length=1,
        description="their sources, which alternate, starting with a random one. given: hard_negatives of the record or "
        "element; exchanged: a word for a colour, size, material, number or position is swapped with one in another phrase of "
        "the image (English only); replaced: such a word is replaced by a contradicting word (English only)",
    )


class StreamConfig(Config):
    """Config of a stream."""

    files: InputWeightedShards = Field(
        description="shards: files, glob patterns, or folders of *.jsonl, *.json (JSON lines), *.tar and *.parquet; URLs of "
        "such files (https, s3); Parquet files of data sets on the Hugging Face Hub (hf:ORG/NAME, "
        "hf:ORG/NAME@REVISION/data/train-*); with a weight, {path: …, weight: 2}"
    )
    batch_size: int = Field(ge=1, description="examples of the stream in a micro-batch of one rank")
    weight: float = Field(1.0, ge=0, description="factor of the stream's losses in the sum of all losses")
    order: Literal["random", "blocks"] = Field(
        "random",
        description="random: shuffle all records; blocks: read runs of neighbouring records, each on one rank, and shuffle them "
        "with other runs, for data with slow random access",
    )
    lanes: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="with order: blocks, number of parts into which the data are split. Every rank reads the same number of "
        "parts, so lanes must be a multiple of the number of ranks; null: number of micro-batches in a global batch",
    )
    block_records: int | None = Field(
        None, ge=1, description=f"with order: blocks, maximum number of records in a block; null: {BLOCK_RECORDS:,}"
    )

    records_key: ClassVar[str] = "batch_size"
    """Config key of the number of records that a rank reads for a micro-batch."""

    @field_validator("order", mode="before")
    @classmethod
    def _sequential_is_gone(cls, value: Any) -> Any:
        if value == "sequential":
            raise ValueError(
                "set order: blocks, which also reads long runs, shuffles, and allows the number of ranks to change"
            )
        return value

    @model_validator(mode="after")
    def _only_blocks_have_lanes(self) -> StreamConfig:
        for key in ("lanes", "block_records"):
            if self.order != "blocks" and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} = {getattr(self, key)} has no effect with order: {self.order}; set order: blocks"
                )
        return self

    @property
    def records_per_batch(self) -> int:
        """Number of records that a rank reads for a micro-batch."""
        return int(getattr(self, self.records_key))

    @property
    def paths(self) -> list[str]:
        """The ``files`` entries without their weights."""
        return [entry.path if isinstance(entry, WeightedShards) else entry for entry in self.files]


class ImageRecordsConfig(StreamConfig):
    """A stream whose records have an image."""

    image_key: str = Field("image", description="key of the image in a JSON record")
    image_is: ImageIs = Field(
        "auto",
        description="path: the value is a path; base64: the value is the encoded file in base64; auto: detect which from its "
        "first characters",
    )
    image_root: InputFolder | None = Field(
        None, description="folder that relative image paths start from; null: the folder of the shard"
    )
    caption_key: str = Field("caption", description="key of the caption of the whole image")
    captions: CaptionLength = Field(
        "short",
        description="texts of records and phrases that also have a long_caption: short; long; sample, one of the two at random; "
        "or both, each with its own losses; data.text.max_tokens limits the length",
    )
    hard_negatives: HardNegativesConfig | None = Field(
        None,
        description="texts that differ from a caption or phrase in one detail and are wrong: {}, or {count: 2, sources: "
        "[given, replaced]}; null: only the texts of other images and boxes are negatives",
    )


class CleanSetConfig(Config):
    """A smaller set of cleaner pairs, which all ranks use in some steps. The other steps use the stream's own, noisy set and have
    no matching loss (as in the authors' code for the 1B set).

    The number of steps in an epoch is computed from the size of the noisy set, and includes steps that read the clean set. An
    epoch therefore reads only the fraction 1 - ``probability`` of the noisy set, each record at most once, and the selected
    records differ between epochs.
    """

    files: InputShards = Field(description="shards of the clean pairs, in the same forms as the stream's `files`")
    probability: float = Field(gt=0, lt=1, description="probability that a step reads this set")
    caption_key: str | None = Field(None, description="key of the caption; null: the key of the stream")


class ImageStreamConfig(ImageRecordsConfig):
    """Image-text pairs."""

    clean: CleanSetConfig | None = Field(
        None, description="a smaller set of clean pairs; in steps that do not read it, no stream has a matching loss"
    )

    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="augmentation of the images")
    careful_flip: bool = Field(
        False, description="do not flip if the caption says left or right; English only (the authors' code flips)"
    )


class VideoStreamConfig(StreamConfig):
    """Video-text pairs. ``model.vision.video.frames`` sets the number of frames per video.

    Lists of frames are read many times faster than video files; :mod:`dataset.prepare.frames` makes them.
    """

    video_key: str = Field("video", description="key of the frames, or of the video's path, in a record")
    video_root: InputFolder | None = Field(
        None, description="folder that relative video paths start from; null: the folder of the shard"
    )
    caption_key: str = Field("caption", description="key of the caption, or of a list with one caption for each clip")
    join_clips: bool = Field(True, description="join neighbouring clips of one video that are too short")
    min_frames: int = Field(8, ge=1, description="clips are joined until they have this number of frames")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="augmentation of the frames")
    careful_flip: bool = Field(
        False, description="do not flip if the caption says left or right; English only (the authors' code flips)"
    )
    reading: VideoReadingConfig = Field(default_factory=VideoReadingConfig, description="how videos are read")
    clean: CleanSetConfig | None = Field(
        None, description="a smaller set of clean pairs; in steps that do not read it, this stream has no matching loss"
    )


class RegionStreamConfig(ImageRecordsConfig):
    """Images with described boxes. A row is a text with its box or boxes, or the caption of the whole image."""

    records_key = "max_images"

    max_images: int = Field(
        ge=1,
        description="number of images that are read for a micro-batch; if they have more examples than batch_size, some "
        "examples are dropped at random",
    )
    max_regions: int = Field(
        5, ge=1, description="maximum number of examples per image, including the caption of the whole image"
    )
    min_inside: float = Field(
        0.5, ge=0, lt=1, description="skip boxes of which at most this fraction of the area is inside the crop"
    )
    careful_flip: bool = Field(
        True,
        description="do not flip if one of the texts says left or right; English only (the authors' 4M code flips)",
    )
    crop: bool = Field(True, description="crop at random around one of the boxes; false: use the whole image")
    whole_image_rows: bool = Field(
        True, description="use the caption of the whole image, if there is one, as an example too"
    )
    augment: RegionAugmentConfig = Field(default_factory=RegionAugmentConfig, description="flip and colours")


class TextStreamConfig(StreamConfig):
    """Texts without images."""

    text_key: str = Field("text", description="key of the text in a JSON record")


class TranslationStreamConfig(StreamConfig):
    """Texts and their translations, in either direction."""

    source_key: str = Field("source_text", description="key of a text in a JSON record")
    target_key: str = Field("target_text", description="key of the text's translation")
    text: TextDataConfig | None = Field(
        None, description="truncation and masking of these texts; null: the settings in data.text"
    )


AnyStreamConfig = (
    ImageStreamConfig | RegionStreamConfig | VideoStreamConfig | TextStreamConfig | TranslationStreamConfig
)


class DataConfig(LoadingConfig):
    """The data of pre-training: its streams, mixed in every micro-batch."""

    text: TextDataConfig = Field(default_factory=TextDataConfig, description="truncation and masking of all texts")
    images: ImageStreamConfig | None = Field(None, description="image-text pairs")
    regions: RegionStreamConfig | None = Field(None, description="images with described boxes")
    videos: VideoStreamConfig | None = Field(None, description="video-text pairs")
    texts: TextStreamConfig | None = Field(None, description="texts without images")
    translations: TranslationStreamConfig | None = Field(None, description="texts with their translations")
    matching_steps: int | None = Field(
        None,
        ge=0,
        description="number of steps with a matching loss; later steps have no matching loss in any stream; null: all steps",
    )
    losses_from: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {},
        description="number of steps before a loss begins, such as {matching: 300, mlm: 300}; until then, a step is faster, "
        "because it does not compute the loss in any stream; losses that are not named begin at once",
    )
    cache_index: Annotated[str | None, MAY_CHANGE] = Field(
        None, description="folder of shard indexes; null: the user's cache folder"
    )
    remote: Annotated[RemoteConfig, MAY_CHANGE] = Field(
        default_factory=RemoteConfig, description="shards at URLs, and the cache of Parquet shards"
    )

    @model_validator(mode="after")
    def _has_a_stream(self) -> DataConfig:
        if not self.streams():
            raise ValueError(
                "no stream is configured; set at least one of images, regions, videos, texts, translations"
            )
        return self

    @model_validator(mode="after")
    def _workers_wait_longer_than_requests(self) -> DataConfig:
        minutes, seconds = self.remote.retry_minutes, self.worker_timeout_s
        if (
            self.workers
            and minutes * 60 >= seconds
            and any(is_url(entry) or is_hub(entry) for entry in self._entries())
        ):
            raise ValueError(
                f"remote.retry_minutes = {minutes:g} is {minutes * 60:g} s, and worker_timeout_s = {seconds:g}: a worker would "
                "be killed while it retries a request; lower remote.retry_minutes, or raise worker_timeout_s"
            )
        return self

    def _entries(self) -> list[str]:
        """Returns the ``files`` entries of all streams and clean sets."""
        own = [entry for stream in self.streams().values() for entry in stream.paths]
        return own + [entry for clean in self.clean_sets().values() for entry in clean.files]

    @property
    def micro_batch(self) -> BatchSize:
        """The micro-batch of the leading stream."""
        name, stream = next(iter(self.streams().items()))
        return BatchSize(f"data.{name}.batch_size", stream.batch_size)

    @property
    def records_per_batch(self) -> int:
        """Number of records of the leading stream that a rank reads for a micro-batch."""
        return next(iter(self.streams().values())).records_per_batch

    def check_ranks(self, ranks: int) -> None:
        for name, stream in self.streams().items():
            if stream.lanes is not None:
                check_lanes(stream.lanes, ranks, f"data.{name}.lanes")

    def streams(self) -> dict[str, AnyStreamConfig]:
        """Returns the configured streams by name."""
        named = {
            "images": self.images,
            "regions": self.regions,
            "videos": self.videos,
            "texts": self.texts,
            "translations": self.translations,
        }
        return {name: stream for name, stream in named.items() if stream is not None}

    def loss_weights(self) -> dict[str, float]:
        """Returns the loss weight of each stream. Long captions with separate losses count as a separate stream."""
        streams = self.streams()
        with_long = [
            name for name, each in streams.items() if isinstance(each, ImageRecordsConfig) and each.captions == "both"
        ]
        return {name: each.weight for name, each in streams.items()} | {
            LONG + name: streams[name].weight for name in with_long
        }

    def record_sets(self) -> dict[str, AnyStreamConfig]:
        """Returns each set of records by name: the streams, and the clean set of a stream as ``<name>/clean``, with the other
        settings of its stream."""
        sets = self.streams()
        for name, clean in self.clean_sets().items():
            changes: dict[str, Any] = {"files": clean.files, "clean": None}
            if clean.caption_key is not None:
                changes["caption_key"] = clean.caption_key
            sets[f"{name}/clean"] = sets[name].model_copy(update=changes)
        return sets

    def clean_sets(self) -> dict[str, CleanSetConfig]:
        """Returns the clean sets by the name of their stream."""
        paired = {"images": self.images, "videos": self.videos}
        return {
            name: stream.clean for name, stream in paired.items() if stream is not None and stream.clean is not None
        }


S = TypeVar("S")


class ReplayConfig(Config, Generic[S]):
    """Examples of an earlier data set in every micro-batch, so that the model keeps what it learned from them."""

    train: S = Field(description="split of the earlier data set, with the keys of data.train")
    share: float = Field(0.5, gt=0, lt=1, description="share of the earlier examples in a micro-batch; at least one")


class FineTuneDataConfig(LoadingConfig):
    """Training data of a fine-tuning task. Each task defines ``train``, and narrows the type of ``replay``."""

    text: TextLimits = TextLimits(max_tokens=40)
    batch_size: int = Field(ge=1, description="examples in a micro-batch of one rank")
    replay: ReplayConfig[Any] | None = Field(None, description="earlier data to train on as well")

    @property
    def micro_batch(self) -> BatchSize:
        return BatchSize("data.batch_size", self.batch_size)

    @property
    def replayed_per_batch(self) -> int:
        """Number of examples of a micro-batch that come from ``replay``."""
        if self.replay is None:
            return 0
        return min(max(1, round(self.replay.share * self.batch_size)), self.batch_size - 1)

    @property
    def records_per_batch(self) -> int:
        """Number of examples of a micro-batch that come from ``train``."""
        return self.batch_size - self.replayed_per_batch

    @model_validator(mode="after")
    def _can_replay(self) -> FineTuneDataConfig:
        if self.replay is not None and isinstance(self.replay.train, dict):
            raise ValueError("the data section of this task does not define the type of replay")
        if self.replay is not None and self.batch_size < 2:
            raise ValueError("a micro-batch of one example has no room for replay; raise batch_size, or remove replay")
        return self


class MediaDataConfig(FineTuneDataConfig):
    """Training data of a fine-tuning task with images or videos."""

    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the images or frames"
    )
    video: VideoReadingConfig = Field(default_factory=VideoReadingConfig, description="how videos are read")


class CaptionedSplitConfig(Config):
    """A split of an image-text or video-text data set.

    With ``format: records``, ``annotations`` is a JSON array or JSON lines of ``{"image", "caption", "image_id"}``. The caption
    is a text, a list of texts, or a dictionary that maps languages to texts or lists of texts. Rows with the same ``image_id``
    (or with the same image, if rows have no ``image_id``) are captions of the same image. Rows about videos have ``video`` or
    ``video_id`` instead of ``image``. ``video`` is a list of base64 images, or the path of a video file, of a JSON file with a
    list of base64 images, or of a folder of images.
    """

    format: Literal["records", "karpathy", "msrvtt", "xflickrco"] = Field(
        "records",
        description="records: your own captions; karpathy: dataset_coco.json or dataset_flickr30k.json; msrvtt: MSRVTT_data.json "
        "or a CSV file like MSRVTT_JSFUSION_test.csv; xflickrco: JSON lines of xFlickr&CO",
    )
    annotations: InputFile = Field(description="file of the captions")
    splits: list[str] | None = Field(
        None, min_length=1, description="splits of a Karpathy file, such as [train, restval]; null for other formats"
    )
    images: InputFolder | None = Field(
        None,
        description="folder that relative paths start from; for xFlickr&CO, the folder that contains flickr30k and coco; null: "
        "the folder of the annotations",
    )
    listed: InputFile | None = Field(
        None,
        description="CSV file with a column video_id (MSRVTT_train.9k.csv); only these videos of MSR-VTT are read",
    )
    language: str | None = Field(
        None,
        description="language of the captions if records have several; records without it are skipped; null: all languages",
    )

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> CaptionedSplitConfig:
        if (self.splits is not None) != (self.format == "karpathy"):
            remedy = "set splits" if self.splits is None else "remove splits, or set format: karpathy"
            raise ValueError(f"format is {self.format}, but splits belong to Karpathy's files; {remedy}")
        if self.listed is not None and self.format != "msrvtt":
            raise ValueError(
                f"format is {self.format}, but listed belongs to MSR-VTT; remove it, or set format: msrvtt"
            )
        return self


class RetrievalDataConfig(MediaDataConfig):
    """Training pairs."""

    train: CaptionedSplitConfig
    replay: ReplayConfig[CaptionedSplitConfig] | None = Field(None, description="earlier data to train on as well")
    text: TextLimits = Field(
        default_factory=lambda: TextLimits(max_tokens=40, max_words=30), description="maximum length of a caption"
    )
    careful_flip: bool = Field(
        False, description="do not flip if the caption says left or right; English only (the authors' code flips)"
    )


class CaptioningDataConfig(MediaDataConfig):
    """Training captions. They are not cleaned, but the tokenizer may change case and punctuation (as in the authors' code)."""

    train: CaptionedSplitConfig
    replay: ReplayConfig[CaptionedSplitConfig] | None = Field(None, description="earlier data to train on as well")
    text: TextDataConfig = Field(
        default_factory=lambda: TextDataConfig(max_tokens=40, mask_prob=0.6, max_masks=18),
        description="truncation and masking of captions",
    )
    prompt: str = Field(
        "a picture of ", description="text before every caption; the model is not trained to predict it"
    )
    careful_flip: bool = Field(True, description="do not flip if the caption says left or right; English only")


class GroundingSplitConfig(Config):
    """A split of a grounding data set.

    With ``format: records``, ``annotations`` is a file of region records (``image``, ``elems`` of ``bb`` and ``caption``). With
    ``format: refcoco``, ``refs`` (``refs(unc).p``) and ``instances`` (``instances.json``) are the official files.
    """

    format: Literal["records", "refcoco"] = Field(
        "records",
        description="records: your own region records; refcoco: the official files of RefCOCO, RefCOCO+, RefCOCOg or gRefCOCO",
    )
    annotations: InputFile | None = Field(None, description="file of region records")
    refs: InputFile | None = Field(
        None, description="the official references: a pickle, in which code is never run, or gRefCOCO's JSON"
    )
    instances: InputFile | None = Field(None, description="the official instances.json, which has the boxes")
    splits: list[str] | None = Field(
        None,
        min_length=1,
        description="splits of the references: train, val, testA, testB (RefCOCOg: train, val, test)",
    )
    images: InputFolder | None = Field(None, description="folder of the images; null: the folder of the annotations")
    language: str | None = Field(
        None, description="language of the phrases if records have several; null: all languages"
    )

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> GroundingSplitConfig:
        official = {"refs": self.refs, "instances": self.instances, "splits": self.splits}
        needed = {**official, "images": self.images} if self.format == "refcoco" else {"annotations": self.annotations}
        others = official if self.format == "records" else {"annotations": self.annotations}
        missing = [key for key, value in needed.items() if value is None]
        if missing:
            raise ValueError(f"format is {self.format}; set {', '.join(missing)}")
        if given := [key for key, value in others.items() if value is not None]:
            raise ValueError(f"format is {self.format}; remove {', '.join(given)}, or change the format")
        return self


class GroundingDataConfig(FineTuneDataConfig):
    """Training phrases."""

    train: GroundingSplitConfig
    replay: ReplayConfig[GroundingSplitConfig] | None = Field(None, description="earlier data to train on as well")
    absent: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="with model.box_set: share of the examples whose phrase is replaced by a phrase without a box: one of replay "
        "(and the other way round), or without replay one of another image",
    )
    crop: bool = Field(True, description="crop at random around the box; false: use the whole image")
    careful_flip: bool = Field(
        True, description="do not flip if the phrase says left or right; English only (as in the authors' code)"
    )
    augment: RegionAugmentConfig = Field(default_factory=RegionAugmentConfig, description="flip and colours")


class NLVRSplitConfig(Config):
    """A split of a visual reasoning data set.

    With ``format: records``, ``annotations`` is a JSON array or JSON lines of ``{"sentence", "label", "images"}``, where
    ``images`` has the paths of one or two images, the left image first.
    """

    format: Literal["records", "nlvr2", "marvl", "xvnli"] = Field(
        "records",
        description="records: your own statements; nlvr2: train.json, dev.json, test1.json, with the official layout of images "
        "in `images`; marvl: JSON lines of MaRVL (<concept>/<image>); xvnli: JSON lines of XVNLI (<Flickr id>.jpg)",
    )
    annotations: InputFile = Field(description="file of the statements")
    images: InputFolder | None = Field(
        None, description="folder that relative image paths start from; null: the folder of the annotations"
    )


class NLVRDataConfig(FineTuneDataConfig):
    """Training statements."""

    train: NLVRSplitConfig
    replay: ReplayConfig[NLVRSplitConfig] | None = Field(None, description="earlier data to train on as well")
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)),
        description="augmentation, drawn separately for each image of a statement",
    )
    careful_flip: bool = Field(
        False, description="do not flip if the text says left or right; English only (the authors' code flips)"
    )


class QuestionsDataConfig(FineTuneDataConfig):
    """Training data of question answering about images or videos."""

    text: TextLimits = Field(
        default_factory=lambda: TextLimits(max_tokens=40, max_words=30), description="maximum length of a question"
    )
    careful_flip: bool = Field(
        True,
        description="do not flip if the question or an answer has the word left or right; English only (the authors' "
        "code also flags words that contain them)",
    )
    questions_per_example: int = Field(
        1,
        ge=1,
        description="maximum number of questions about the same image or video in an example. The image or video of an example "
        "is read and encoded once, and batch_size counts examples. 1 (as in the authors' code): each question is an example",
    )


class QuestionsConfig(Config):
    """A source of questions.

    With ``format: records``, ``questions`` is a JSON array or JSON lines of ``{"question_id", "question", "image", "answer"}``.
    The answer is a text, or a list with the answer of each annotator.
    """

    format: Literal["records", "vqa2", "visual_genome", "gqa", "gqa_lxmert"] = Field(
        "records",
        description="records: your own questions; vqa2: VQA v2's questions, with the official layout of images in `images` "
        "(train2014/COCO_train2014_….jpg); visual_genome: question_answers.json (<image_id>.jpg, also in VG_100K and VG_100K_2); "
        "gqa: a file of GQA or xGQA (gqa/images/<imageId>.jpg); gqa_lxmert: GQA in LXMERT's format",
    )
    questions: InputFile = Field(description="file of the questions")
    annotations: InputFile | None = Field(
        None, description="VQA v2's annotation file, which contains the answers; null: no answers"
    )
    images: InputFolder | None = Field(
        None, description="folder that relative image paths start from; null: the folder of `questions`"
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="factor of the losses of the answers; null: 0.5 for questions of Visual Genome and 1 for others",
    )
    image_share: tuple[float, float] = Field(
        (0.0, 1.0),
        description="part of the images to read, with all their questions. The hash of an image's name is a number in 0..1; "
        "images from the first number up to the second are read. For example, [0, 0.05] can be held out from [0.05, 1]",
    )

    @model_validator(mode="after")
    def _share_is_not_empty(self) -> QuestionsConfig:
        low, high = self.image_share
        if not 0 <= low < high <= 1:
            raise ValueError(f"image_share is [{low:g}, {high:g}]; set it to two increasing numbers between 0 and 1")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> QuestionsConfig:
        if self.annotations is not None and self.format != "vqa2":
            raise ValueError(
                f"format is {self.format}, but annotations belong to VQA v2; remove annotations, or set format: vqa2"
            )
        return self


class VQADataConfig(QuestionsDataConfig):
    """Training questions."""

    train: list[QuestionsConfig] = Field(
        min_length=1, description="sources of questions; an epoch contains every question of every source once"
    )
    replay: ReplayConfig[list[QuestionsConfig]] | None = Field(None, description="earlier data to train on as well")
    max_answer_tokens: int = Field(
        40, ge=3, description="maximum number of tokens in an answer, including [CLS] and [SEP]; the rest is cut off"
    )
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the images"
    )


class VideoQuestionsConfig(Config):
    """Questions about videos, as a JSON array or JSON lines of ``{"question", "answer", "video_id"}`` like the files of MSRVTT-QA
    and MSVD-QA. Instead of ``video_id``, a row may have ``video``: a path, or a list of base64 images."""

    questions: InputFile = Field(description="file of MSRVTT-QA or MSVD-QA, or your own questions")
    videos: InputFolder | None = Field(None, description="folder of the videos; null: the folder of `questions`")
    names: InputFile | None = Field(
        None, description="MSVD's youtube_mapping.txt; each line has a file name without suffix and a video_id"
    )


class VideoQADataConfig(QuestionsDataConfig, MediaDataConfig):
    """Training questions."""

    train: VideoQuestionsConfig
    replay: ReplayConfig[VideoQuestionsConfig] | None = Field(None, description="earlier data to train on as well")

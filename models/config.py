"""The config sections of the models: encoders, heads and losses, and where their weights come from.

Config classes live apart from the modules that use them, so that a config can be checked without importing torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from utils.config import Config
from utils.errors import UserError
from utils.hub import TIMM
from utils.image_size import ImageSize, NativeSize
from utils.inputs import InputFile, InputModel, InputWeights

MAX_BLOCKS, MAX_HEADS, MAX_WIDTH, MAX_ROWS = 1000, 1024, 65536, 10_000_000
"""Maximum sizes in a config: blocks, heads per block, widths, and rows of a table. They are far above the sizes of any published
model. Without them, building a model from a damaged config could take hours."""


class BlockConfig(Config):
    """Sizes of a BERT block."""

    width: int
    heads: int
    intermediate: int
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    drop_path: float = 0.0
    init_std: float = 0.02

    def at_depth(self, index: int, blocks: int) -> BlockConfig:
        """Sizes of block ``index`` in a stack of ``blocks``.

        The drop path rate rises linearly from 0 in the first block to ``drop_path`` in the last. If ``drop_path`` is set, it
        replaces the dropout on residual branches (as in the authors' code).
        """
        depth = index / (blocks - 1) if blocks > 1 else 0.0
        dropout = 0.0 if self.drop_path else self.dropout
        return self.model_copy(update={"drop_path": self.drop_path * depth, "dropout": dropout})


def heads_error(width: int, heads: int) -> str | None:
    """Returns an error message if ``heads`` does not divide ``width``, otherwise None. The message suggests the nearest valid
    numbers of heads."""
    if width % heads == 0:
        return None
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    near = (max(number for number in divisors if number < heads), *(number for number in divisors if number > heads))
    return f"width {width} is not a multiple of heads {heads}; use {' or '.join(map(str, near[:2]))} heads"


class VideoConfig(Config):
    """The number of frames of a video, and how they are pooled."""

    frames: int = Field(ge=1, description="number of frames sampled from a video")
    pooling: Literal["mean", "tokens"] = Field(
        "mean",
        description="how frames are combined. mean: average the patches over time (as published), which loses the "
        "order of frames; tokens: the fusion encoder attends to the patches of all frames",
    )


PUBLISHED_PIXELS = {
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
"""CLIP's statistics. The published models use them for every backbone, including BEiT-2."""


def _without_timm(name: object) -> object:
    """Removes the prefix ``timm:``, which occurs in names of weights but not in names of models."""
    return name.removeprefix(TIMM) if isinstance(name, str) else name


class VisionConfig(Config):
    """The vision encoder. Sizes that are null are taken from the backbone."""

    previous_defaults = PUBLISHED_PIXELS

    backbone: Annotated[str, BeforeValidator(_without_timm)] = Field(
        "beitv2_base_patch16_224",
        description="a timm model (`timm.list_models()`), with or without the prefix timm:, or hf: followed by the "
        "name or folder of a Hugging Face model, such as hf:facebook/dinov2-base",
    )
    image_size: ImageSize = Field(
        224,
        description="side of the square input in pixels; [height, width] for an input that is not square; or "
        "{max_patches: 196, patch_size: 16} for images that keep their aspect ratio, each resized to the largest grid "
        "of whole patches within this budget",
    )
    patch_size: int | None = Field(None, ge=1, description="side of a patch in pixels; null: as in the backbone")
    stem: Literal["linear", "convolutions"] = Field(
        "linear",
        description="how the pixels of a patch are embedded. linear: a linear layer, as in other ViTs; convolutions: "
        "a small convolutional network, with which a small model trained from scratch learns shapes within hundreds "
        "of steps",
    )
    width: int | None = Field(None, ge=1, le=MAX_WIDTH, description="width of the states; null: as in the backbone")
    depth: int | None = Field(None, ge=1, le=MAX_BLOCKS, description="number of blocks; null: as in the backbone")
    heads: int | None = Field(
        None, ge=1, le=MAX_HEADS, description="number of attention heads; null: as in the backbone"
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="drop path rate of the last block, rising linearly from 0 in the first block"
    )
    layer_scale: float | Literal["backbone"] | None = Field(
        "backbone",
        description="initial value of LayerScale. backbone: as in the backbone; null: no LayerScale; the published "
        "BEiT-2 models use 0.1",
    )
    pixel_mean: tuple[float, float, float] | None = Field(
        None,
        description="means of red, green and blue, between 0 and 1, used to normalise pixels; null: as in the "
        "backbone; the published models use CLIP's values with every backbone",
    )
    pixel_std: tuple[float, float, float] | None = Field(
        None,
        description="standard deviations of red, green and blue; set together with pixel_mean; null: as in the "
        "backbone",
    )
    positions: Literal["backbone", "sincos"] = Field(
        "backbone",
        description="position embeddings. backbone: as in the backbone; sincos: trained absolute positions that are "
        "initialised with two-dimensional sines and cosines, without which a small model trained from scratch does "
        "not learn boxes",
    )
    patch_positions: bool = Field(
        False,
        description="add fixed sine-cosine positions to the output of the last block; a small model trained from "
        "scratch learns boxes sooner, because its blocks do not have to preserve positions",
    )
    video: VideoConfig | None = Field(None, description="settings for videos; null: the model takes only images")

    @model_validator(mode="after")
    def _check_sizes_and_statistics(self) -> VisionConfig:
        if self.video is not None and isinstance(self.image_size, NativeSize):
            raise ValueError("videos need a fixed image_size, such as 224")
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("set both pixel_mean and pixel_std, or neither")
        values = (*(self.pixel_mean or ()), *(self.pixel_std or ()))
        if values and not 0 <= min(values) <= max(values) <= 1:
            outside = next(value for value in values if not 0 <= value <= 1)
            hint = "; divide values in 0..255 by 255" if outside > 1 else ""
            raise ValueError(f"pixel_mean and pixel_std must lie between 0 and 1, not be {outside:g}{hint}")
        return self


class TextArchitecture(Config):
    """Sizes of a BERT or RoBERTa encoder."""

    family: Literal["bert", "roberta"] = Field(
        "bert", description="family of the encoder, which determines how positions are counted and texts are padded"
    )
    vocab_size: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="number of rows in the word table; null: size of the tokenizer's vocabulary",
    )
    width: int = Field(768, ge=1, le=MAX_WIDTH, description="width of the states")
    layers: int = Field(12, ge=1, le=MAX_BLOCKS, description="number of blocks")
    heads: int = Field(12, ge=1, le=MAX_HEADS, description="number of attention heads, a divisor of the width")
    intermediate: int = Field(
        3072, ge=1, le=MAX_WIDTH, description="width of the hidden layer of the feed-forward network"
    )
    max_positions: int = Field(
        512,
        ge=1,
        le=MAX_ROWS,
        description="number of rows in the position table; RoBERTa does not use the first two",
    )
    token_types: int = Field(
        2, ge=1, description="number of rows in the token type table, of which only the first is used"
    )
    eps: float = Field(
        1e-12, gt=0, description="epsilon of all LayerNorms, including those of the fusion encoder and the MLM head"
    )
    pad_id: int = Field(0, ge=0, description="token id of the padding token")
    init_std: float = Field(
        0.02,
        gt=0,
        description="standard deviation of random initial weights, also in the fusion encoder; 0.02 suits a width of "
        "768, and narrow models need a larger value",
    )

    @property
    def first_position(self) -> int:
        """Position of the first token. RoBERTa's positions start after ``pad_id``."""
        return self.pad_id + 1 if self.family == "roberta" else 0

    @property
    def longest_text(self) -> int:
        """Maximum number of tokens of a text: the number of positions."""
        return self.max_positions - self.first_position

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextArchitecture:
        error = heads_error(self.width, self.heads)
        if error:
            raise ValueError(error)
        return self


class TextConfig(Config):
    """The text encoder, the maximum length of texts, and dropout."""

    encoder: InputModel = Field(
        "bert-base-uncased",
        description="Hugging Face name or folder from which the tokenizer is loaded and, if `arch` is null, the "
        "sizes of the text encoder are read",
    )
    arch: TextArchitecture | None = Field(None, description="sizes of the text encoder; null: as in `encoder`")
    max_positions: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="maximum number of tokens in a text; if it differs from the encoder's, the position table is "
        "interpolated when weights are loaded; null: as in the encoder",
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of embeddings and residuals, also in the fusion encoder"
    )
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of attention weights, also in the fusion encoder"
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="drop path rate of the last block, rising linearly from 0 in the first block; replaces "
        "residual dropout",
    )

    @property
    def knows_vocabulary(self) -> bool:
        """True if the vocabulary size is known without a tokenizer."""
        return self.arch is None or self.arch.vocab_size is not None


class FusionConfig(Config):
    """Sizes of the fusion encoder.

    Sizes that are null are taken from the text encoder. Sizes that are set do not change when the text encoder is replaced.
    """

    layers: int = Field(6, ge=1, le=MAX_BLOCKS, description="number of blocks")
    width: int | None = Field(
        None,
        ge=1,
        le=MAX_WIDTH,
        description="width of the states; text states are projected if their width differs; null: as in the text "
        "encoder",
    )
    heads: int | None = Field(
        None, ge=1, le=MAX_HEADS, description="number of attention heads; null: as in the text encoder"
    )
    intermediate: int | None = Field(
        None,
        ge=1,
        le=MAX_WIDTH,
        description="width of the hidden layer of the feed-forward network; null: as in the text encoder",
    )
    eps: float | None = Field(None, gt=0, description="epsilon of all LayerNorms; null: as in the text encoder")
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="drop path rate of the last block, rising linearly from 0 in the first block; replaces "
        "residual dropout",
    )

    def block(self, text: BlockConfig) -> BlockConfig:
        """Sizes of a fusion block, given the sizes ``text`` of the text encoder's blocks.

        Raises:
            UserError: if the number of heads does not divide the width.
        """
        sizes = {"width": self.width, "heads": self.heads, "intermediate": self.intermediate, "eps": self.eps}
        in_config = {name: size for name, size in sizes.items() if size is not None}
        block = text.model_copy(update={**in_config, "drop_path": self.drop_path})
        error = heads_error(block.width, block.heads)
        if error:
            raise UserError(
                f"{error} (unset sizes come from the text encoder",
                where="model.fusion",
                remedy="set width, heads and intermediate)",
            )
        return block


class ModelConfig(Config):
    """Settings of the encoders, which all tasks share."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()

    @property
    def chunks(self) -> int | Literal["step"]:
        """Number of micro-batches per rank over which a loss is computed; see :class:`engine.task.TaskModel`."""
        return 1


MAX_TEMPERATURE = 0.5


class ContrastiveConfig(Config):
    """Settings of the contrastive loss, which is computed over the global batch."""

    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="type of the loss. softmax: equation 1 of the paper; sigmoid: each pair is classified as matched "
        "or not (SigLIP)",
    )
    bias: float = Field(
        -10.0,
        description="initial value of the learned bias of the sigmoid loss. The best value for an untrained model is "
        "the negative logarithm of the number of examples in a global batch (SigLIP: -10)",
    )
    min_temperature: float = Field(
        0.001,
        # saved runs may contain the previous name
        validation_alias=AliasChoices("min_temperature", "least_temperature"),
        gt=0,
        le=MAX_TEMPERATURE,
        description="lower limit of the learned temperature. On small data sets the images are memorised, the "
        "temperature collapses, and unseen images are ranked worse; on such data sets, the initial temperature may "
        "be a better limit",
    )
    text: Literal["cls", "mean", "last"] = Field(
        "cls",
        description="token states that represent a text. cls: the state of its first token (published); mean: the "
        "mean of its tokens' states, as sentence encoders such as MiniLM were trained; last: the state of its last "
        "token, as SigLIP's text encoder was trained",
    )
    text_projection: Literal["random", "identity"] = Field(
        "random",
        description="initial projection of texts. identity: the joint space starts as the text encoder's own space, "
        "which keeps its knowledge of words that are not in the training texts; embed_dim must be its width",
    )
    gradient: Literal["exact", "released"] = Field(
        "exact",
        description="gradient with several ranks. exact: the same gradient as in one process with the whole batch; "
        "released: with several ranks, embeddings receive 1/ranks of this gradient, because the authors' code passes "
        "no gradient to gathered embeddings (the gradient of the temperature is exact)",
    )
    chunks: Annotated[int, Field(ge=1)] | Literal["step"] = Field(
        1,
        description="number of micro-batches per rank that this loss combines, to increase the number of negatives; "
        "the encoders run twice (gradient caching). It must divide the number of micro-batches per step. step: all "
        "micro-batches of a step, so that the weights do not depend on the number of ranks",
    )


class AligningConfig(ModelConfig):
    """The encoders' settings plus those of the joint embedding space of images and texts, for pre-training and retrieval."""

    embed_dim: int = Field(256, ge=1, le=MAX_WIDTH, description="width of the contrastive embeddings")
    temperature: float = Field(
        0.07,
        gt=0,
        le=MAX_TEMPERATURE,
        description="initial temperature of the contrastive loss; the temperature is learned, between "
        "`contrastive.min_temperature` and 0.5",
    )
    contrastive: ContrastiveConfig = ContrastiveConfig()

    @model_validator(mode="after")
    def _temperature_is_in_its_range(self) -> AligningConfig:
        if self.temperature < (low := self.contrastive.min_temperature):
            raise ValueError(
                f"temperature is {self.temperature:g}, but contrastive.min_temperature is {low:g}; raise the "
                "temperature or lower the limit"
            )
        return self

    @property
    def chunks(self) -> int | Literal["step"]:
        return self.contrastive.chunks


class LossWeights(Config):
    """Weights of the losses in equation 6. In the paper, all weights are 1. A loss with weight 0 is not computed."""

    contrastive: float = Field(1.0, ge=0, description="weight of the contrastive loss (paper, equation 1)")
    matching: float = Field(1.0, ge=0, description="weight of the matching loss (paper, equation 2)")
    mlm: float = Field(1.0, ge=0, description="weight of the masked language modelling loss (paper, equation 3)")
    l1: float = Field(1.0, ge=0, description="weight of the L1 loss of boxes (paper, equation 5)")
    giou: float = Field(1.0, ge=0, description="weight of the GIoU loss of boxes (paper, equation 5)")
    whole_image_boxes: bool = Field(
        False, description="also compute box losses for captions of whole images, whose box is (0.5, 0.5, 1, 1)"
    )


Identical = Literal["ignore", "negative"]


class StreamWeights(Config):
    """The factor by which the losses of each stream (type of training data) are multiplied; None if the run does not use the
    stream."""

    images: float | None = 1.0
    regions: float | None = 1.0
    texts: float | None = None
    translations: float | None = None
    videos: float | None = None
    long_images: float | None = None
    long_regions: float | None = None


class IdenticalTexts(Config):
    """How each stream treats pairs with equal texts in a batch."""

    images: Identical = Field(
        "negative",
        description="negative: examples with equal texts are negatives of each other; ignore: such pairs are not compared",
    )
    videos: Identical = Field(
        "negative",
        description="negative: examples with equal texts are negatives of each other; ignore: such pairs are not compared",
    )
    translations: Identical = Field(
        "negative",
        description="negative: examples with equal texts are negatives of each other; ignore: such pairs are not compared",
    )
    regions: Identical = Field(
        "ignore",
        description="negative: regions with equal texts, such as 'a man', are negatives of each other; ignore: such "
        "pairs are not compared",
    )


class PretrainContrastiveConfig(ContrastiveConfig):
    """The contrastive loss of pre-training, where several pairs can have the same text."""

    identical_texts: IdenticalTexts = IdenticalTexts()

    @field_validator("identical_texts", mode="before")
    @classmethod
    def _same_for_all_streams(cls, value: Any) -> Any:
        return dict.fromkeys(IdenticalTexts.model_fields, value) if isinstance(value, str) else value


class PretrainModelConfig(AligningConfig):
    """The pre-training model."""

    contrastive: PretrainContrastiveConfig = PretrainContrastiveConfig()
    word_table: Literal["tied", "own"] = Field(
        "tied",
        description="word table of the MLM head. tied: the word embedding table, as in BERT; own: a separate table, "
        "as released for XLM-R",
    )


class BoxSetConfig(Config):
    """Settings of the box-set head."""

    queries: int = Field(
        16, ge=1, description="maximum number of boxes per phrase; phrases with more boxes are skipped in training"
    )
    layers: int = Field(
        2,
        ge=1,
        description="number of blocks in which boxes attend to each other, to the phrase and to the image",
    )


class SamplingConfig(Config):
    """Settings for sampling tokens instead of searching for the most likely text."""

    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; below 1, likely tokens are drawn more often"
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="sample only from the likeliest tokens, which together have at least this probability",
    )


class BeamConfig(Config):
    """Settings of beam search. Lengths do not include the prompt."""

    beams: int = Field(3, ge=1, description="number of beams; 1: greedy search")
    max_length: int = Field(
        50,
        ge=1,
        description="maximum number of tokens, including the end token; the authors' code also counts the prompt, "
        "and adds one token per image in the batch",
    )
    min_length: int = Field(5, ge=0, description="minimum number of tokens before the end token")
    length_penalty: float = Field(
        0.0,
        ge=0,
        description="exponent p of the length penalty: a log-likelihood is divided by ((5 + tokens) / 6)^p; 0 "
        "favours short texts",
    )
    no_repeat_ngram: int = Field(
        3, ge=0, description="size n of the n-grams that must not occur twice; 0: no restriction"
    )

    @model_validator(mode="after")
    def _lengths_fit_together(self) -> BeamConfig:
        if self.min_length >= self.max_length:
            raise ValueError(
                f"min_length {self.min_length} leaves no room for the end within max_length {self.max_length}; lower "
                "min_length"
            )
        return self


class DecodingConfig(BeamConfig):
    """The method of text generation and its limits."""

    sampling: SamplingConfig | None = Field(None, description="settings for sampling; null: beam search")

    @model_validator(mode="after")
    def _sampling_has_one_beam(self) -> DecodingConfig:
        if self.sampling is not None and self.beams != 1:
            raise ValueError(f"beams is {self.beams}, but sampling generates one text; set beams to 1")
        return self


class GroundingModelConfig(ModelConfig):
    """The encoders and the head of a grounding model."""

    box_set: BoxSetConfig | None = Field(
        None,
        description="settings of the head for phrases with several boxes or none; null: the published head, which "
        "predicts one box per phrase",
    )

    @property
    def boxes_of_a_phrase(self) -> range:
        """The numbers of boxes that a phrase may have in training."""
        return range(1, 2) if self.box_set is None else range(self.box_set.queries + 1)


class NLVRModelConfig(ModelConfig):
    """The encoders and a classifier."""

    images: int = Field(2, ge=1, le=2, description="number of images per statement: 2 in NLVR2 and MaRVL, 1 in XVNLI")
    classes: int = Field(2, ge=2, description="number of labels. 2: false, true; 3: contradiction, entailment, neutral")


class VideoQAModelConfig(ModelConfig):
    """The encoders and a classifier."""

    classes: int = Field(ge=2, description="number of candidate answers in evaluation.answers")


AnswerDecoding = Literal["rank", "beam"]
"""How a question is answered. "rank" selects the most likely candidate from a list; "beam" generates an answer by beam search."""


class AnswerBeamConfig(BeamConfig):
    """Settings of beam search for answers, which are short."""

    max_length: int = Field(10, ge=1, description="maximum number of tokens, including the end token")
    min_length: int = Field(1, ge=0, description="minimum number of tokens before the end token")
    no_repeat_ngram: int = Field(
        0, ge=0, description="size n of the n-grams that must not occur twice; 0: no restriction"
    )


class DecoderConfig(Config):
    """Depth and word table of the answer decoder, whose blocks have the sizes of the fusion blocks."""

    layers: int | None = Field(
        None,
        ge=1,
        le=MAX_BLOCKS,
        description="number of blocks, which start from the weights of fusion blocks; either the number of fusion "
        "blocks or half of it; null: the number of fusion blocks",
    )
    word_table: Literal["own", "shared"] = Field(
        "own",
        description="word table of the decoder. own: a separate table, which released files for VQA and xGQA "
        "require; shared: the text encoder's table, which is pre-trained and saves 192M parameters with XLM-R",
    )


class VQAModelConfig(ModelConfig):
    """The encoders and an answer decoder."""

    decoder: DecoderConfig = DecoderConfig()

    @model_validator(mode="after")
    def _layers_have_a_source(self) -> VQAModelConfig:
        fusion_layers, layers = self.fusion.layers, self.decoder_layers
        if layers != fusion_layers and 2 * layers != fusion_layers:
            raise ValueError(
                f"decoder.layers is {layers}, which is neither all nor half of the {fusion_layers} fusion layers; "
                f"use {fusion_layers}"
            )
        return self

    @property
    def decoder_layers(self) -> int:
        """Number of layers in the decoder."""
        return self.decoder.layers or self.fusion.layers


class RetrievalLossConfig(Config):
    """Weights of the losses of retrieval, in addition to the contrastive and the matching loss."""

    distillation: float = Field(
        0.0,
        ge=0,
        description="weight of the distillation, which keeps the similarities of the model of init.checkpoint",
    )


class CaptioningLossConfig(Config):
    """Settings of the loss on the words of captions."""

    label_smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="label smoothing: fraction of the target probability that is spread over all words",
    )


class SelfCriticalConfig(Config):
    """How the captions that receive a reward are sampled."""

    samples: int = Field(
        5,
        ge=2,
        description="number of captions sampled per image; the baseline of a caption is the mean reward of the others",
    )
    max_length: int = Field(32, ge=1, description="maximum number of tokens in a caption, including the end token")
    temperature: float = Field(
        1.0,
        gt=0,
        description="temperature for sampling and for the trained distribution; set it below 1 if label smoothing "
        "has flattened the distribution",
    )


Ranking = Literal["likelihood", "released"]
"""How a candidate is scored. "likelihood" is the sum of the log-probabilities of its tokens. "released" (as in the authors' code)
counts the log-probability of the first token twice."""


RankingScore = Literal["cosine", "matching", "sum"]
"""The score by which images and texts are ranked for each other. "cosine" compares embeddings. With the other two, the fusion
encoder re-ranks the best candidates by cosine: "matching" is the matching head's logit (published), and "sum" its log-odds,
multiplied by a weight, plus the cosine divided by the temperature."""

RANKING_SCORE = (
    "score by which candidates are sorted. cosine: the cosine of the embeddings, without re-ranking; matching: the logit of "
    "the matching head (published); sum: its log-odds, multiplied by matching_weight, plus the cosine divided by the "
    "temperature; auto: whichever of the three has the best R@1 on validation records"
)
"""Description of the config key ``score``."""

MATCHING_WEIGHT = (
    "weight of the matching head's log-odds in `score: sum`; below 1 for a head that is too confident, such as after many "
    "epochs on few pairs"
)
"""Description of the config key ``matching_weight``."""


class InitConfig(Config):
    """The sources of the initial weights. Parts without a source start from random weights."""

    vision: InputFile | None = Field(
        None,
        description="weights of the vision encoder: a BEiT-2 file (.pth or .safetensors), a timm name with its tag, "
        "such as timm:beitv2_base_patch16_224.in1k_ft_in22k, a Hub name with the prefix hf:, or the folder of a "
        "Hugging Face model",
    )
    text: InputModel | None = Field(None, description="weights of the text encoder: a folder or a Hugging Face name")
    checkpoint: InputWeights | None = Field(
        None,
        description="weights of the whole model: a published X²-VLM file, one of our weight files, or the folder of "
        "a run; if `text` is also set, the text encoder comes from `text` and everything else from the checkpoint",
    )
    new_text: bool = Field(
        False,
        description="do not load the text encoder from the checkpoint: load it from `text` or, if "
        "`text` is null, initialise it at random",
    )

    @model_validator(mode="after")
    def _sources_do_not_contradict_each_other(self) -> InitConfig:
        if self.checkpoint and self.vision:
            raise ValueError("checkpoint and vision are both set; set either checkpoint, or vision and text")
        if self.new_text and not self.checkpoint:
            raise ValueError(
                "new_text says that the checkpoint has a different text encoder; set checkpoint, or remove new_text"
            )
        return self

"""Builds the model, and loads the weights that the run starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from models.checkpoints import LoadReport
from models.checkpoints.loading import BACKBONE
from models.checkpoints.report import by_module
from models.core.backbones import backbone_pixels
from models.core.hub_text import HubTextEncoder
from tasks.base import check_length, load_initial
from tasks.prepared import NotCheckedError
from tools.doctor.findings import Report
from tools.doctor.subject import Subject, shorten
from utils.errors import UserError
from utils.findings import Finding
from utils.printing import counted

ENCODERS = ("vision.", "text.", "fusion.")


def check_model(subject: Subject, report: Report) -> None:
    """Builds the model."""
    model = subject.build_model()
    for key, length in subject.task.text_lengths(subject.config).items():
        check_length(model, key, length)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report.ok("model", f"{parameters / 1e6:,.1f} M parameters; {_encoders(model, subject.config.model)}")


def _encoders(model: Any, config: Any) -> str:
    """Describes the encoders of a model in a line."""
    backbone, (rows, columns) = model.vision.vision_backbone, model.vision.grid
    patches = f"{rows} x {columns}" if backbone.native is None else f"up to {backbone.max_patches}"
    if isinstance(model.text, HubTextEncoder):
        text, layers = f"{model.text.model.config.model_type} of {config.text.encoder}", model.text.blocks_to_shard
    else:
        text, layers = model.text.arch.family, model.text.encoder.layer
    return (
        f"vision: {backbone.name}, {len(backbone.blocks)} blocks, width {backbone.width}, {patches} patches; text: "
        f"{text}, {len(layers)} layers, width {model.text.block_config.width}; fusion: {len(model.fusion.layer)} layers"
    )


def check_pixels(subject: Subject, report: Report) -> None:
    """Warns if the config does not normalise pixels with the statistics that the backbone was trained with. BEiT backbones are
    not checked, because the authors' BEiT-2 models use different statistics."""
    vision = subject.config.model.vision
    if vision.pixel_mean is None or vision.backbone.startswith("beit"):
        return
    try:
        own = backbone_pixels(vision.backbone)
    except UserError as error:
        raise NotCheckedError(error.what) from None  # the run does not need them, because the config has its own
    if (vision.pixel_mean, vision.pixel_std) != own:
        fact = (
            f"{vision.backbone} was trained with mean {own.mean} and standard deviation {own.std}, but the config has "
            "different values"
        )
        remedy = (
            "set model.vision.pixel_mean and pixel_std to null, unless the weights have been trained further "
            "with the values in the config"
        )
        report.add("pixels", [Finding("warning", "model.vision.pixel_mean", fact, remedy)])


def check_weights(subject: Subject, report: Report) -> None:
    """Loads the weights that ``init`` names into the model."""
    init = subject.config.init
    if init.checkpoint is None and init.vision is None and init.text is None:
        report.ok("weights", "all random (init names no file)")
        return
    subject.require_inputs("init.")
    if subject.unfetched is not None:
        raise NotCheckedError(f"init.text: {subject.unfetched} has not been downloaded yet")
    model = subject.built_model()
    reports = load_initial(subject.task, subject.config, model)
    for loaded in reports:
        report.ok("weights", counts(loaded))
    loaded_names = {name for each in reports for name in (*each.loaded, *each.copied)}
    random = [name for name, _ in model.named_parameters() if name not in loaded_names]
    report.add("random", encoder_findings(subject, reports, random), _listed(random) or "no parameters are random")
    for each in reports:
        for check, text in details(each):
            report.ok(check, text)


def counts(report: LoadReport) -> str:
    """Summarises how a file's tensors were used."""
    return (
        f"{report.source}: {len(report.loaded)} loaded ({len(report.resized)} of them resized), {len(report.copied)} copied, "
        f"{len(report.dropped)} dropped, {len(report.unused)} without a counterpart"
    )


def details(report: LoadReport) -> Iterator[tuple[str, str]]:
    """Yields the name of a check and a line of text for each type of tensor that was not simply loaded."""
    if report.resized:
        first = next(iter(report.resized.values()))
        yield "resized", f"{_listed(list(report.resized))}: {first}"
    if report.copied:
        targets, originals = (
            sorted({name.split(".")[0] for name in names}) for names in zip(*report.copied.items(), strict=True)
        )
        yield "copied", f"{len(report.copied)} of {', '.join(targets)} from {', '.join(originals)}"
    if report.dropped:
        reasons = Counter("tied to others" if why.startswith("tied to") else why for why in report.dropped.values())
        yield "dropped", "; ".join(f"{count} {why}" for why, count in reasons.items())
    if report.unused:
        parts = Counter(name.split(".")[0] for name in report.unused)
        yield "without a counterpart", ", ".join(f"{name} ({count})" for name, count in parts.items())


def encoder_findings(subject: Subject, reports: list[LoadReport], random: list[str]) -> list[Finding]:
    """Returns a finding if the checkpoint lacks encoder parameters, unless its text encoder is skipped on purpose, or if the file
    of ``init.vision`` lacks parameters of the backbone."""
    init = subject.config.init
    if init.checkpoint is None:
        missing = [name for name in random if init.vision is not None and name.startswith(BACKBONE)]
    else:
        missing = [name for name in random if name.startswith(ENCODERS) and not reports[0].text_skipped]
    if not missing:
        return []
    count = counted(len(missing), "encoder parameter is", "encoder parameters are")
    fact = f"{count} missing from the file and randomly initialised: {_listed(missing) if missing[3:] else ', '.join(missing)}"
    return [
        Finding(
            "warning",
            "init.vision" if init.checkpoint is None else "init.checkpoint",
            fact,
            "check that this is the right file, and that it was trained with the same settings of the model",
        )
    ]


def _listed(names: list[str]) -> str:
    return shorten(by_module(names), 5)

"""``run.py calibrate RUN``: fits the probabilities of boxes and phrases to held-out records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from commands.models import ModelFlags
from utils.errors import UserError
from utils.flags import Positive, named
from utils.printing import counted

if TYPE_CHECKING:
    from metrics.calibration import Fitted
    from x2vlm.calibration import Calibrated, Examples

DIAGRAM = "calibration.png"


def calibrate(
    run: Path,
    /,
    *,
    records: Annotated[tuple[str, ...], named("FILE")],
    limit: Positive = 1000,
    seed: int = 0,
    running: ModelFlags = ModelFlags(),
) -> int:
    """Fit the probabilities that `predict score` gives for boxes and phrases to held-out records with boxes.

    The matching head is trained with hard negatives, so its probabilities do not say how often it is right. From its log-odds and
    the cosine, logistic or isotonic regression learns two probabilities: that a phrase describes a box, and that the image shows
    what a phrase describes. Cross-validation by image chooses the kind of regression
    and gives the calibration errors that are printed. The calibration is stored in the folder as calibration.json and is used
    from then on; calibration.png shows the reliability before and after.

    Args:
        run: folder of a pre-training or retrieval run, or of a saved model.
        records: files of records with boxes (docs/records.md) on which the run was not trained; may be repeated.
        limit: maximum number of records to read.
        seed: seed of the wrong phrases that are drawn.

    Examples:
        python run.py calibrate runs/demo/pretrain-seed0 --records data/scenes/val.jsonl

    Returns:
        0 the model is calibrated; 2 the records or the model cannot be used
    """
    if not run.is_dir():
        raise UserError("is not a folder", where=run, remedy="pass the folder of a run or of a saved model")
    model = running.load(str(run))
    model.require("score")
    not_compared = check_unseen(run, records)

    from x2vlm.calibration import calibrate as fit_calibration
    from x2vlm.calibration import write_calibration

    found = fit_calibration(model, records, limit=limit, seed=seed)
    file = write_calibration(run, found.calibration, model.network)
    _draw(found, run / DIAGRAM)
    sys.stdout.write(f"{'':18}{'examples':>9}{'error before':>14}{'after':>8}{'AUROC':>8}  regression\n")
    for name, (examples, fitted) in (("box and phrase", found.pairs), ("phrase in image", found.phrases)):
        sys.stdout.write(f"{name:18}{_row(examples, fitted)}\n")
    for line in not_compared:
        sys.stdout.write(f"not compared with the training data: {line}\n")
    sys.stdout.write(f"written: {file} and {DIAGRAM}\n")
    return 0


def check_unseen(run: Path, records: Sequence[str]) -> list[str]:
    """Compares the images of records with the training images of a run. Returns a line for each training set that cannot be read.
    A saved model does not know its training data.

    Raises:
        UserError: an image of the records is in the training data.
    """
    from commands.leaks import ImageSets, read_images
    from dataset.config import ImageRecordsConfig
    from dataset.examples import readable_records
    from dataset.leaks import shared_images
    from dataset.shards.readers import Shards
    from engine.run_files import CONFIG_FILE, EVENTS_FILE
    from tools.doctor.shared import images_of_record

    if not (run / EVENTS_FILE).is_file():
        return [f"{run} is not the folder of a run, so its training data are not known"]
    image_sets = ImageSets()
    read_images(str(run / CONFIG_FILE), image_sets)
    shards = Shards(list(records), key="--records", in_order=True)
    stream = ImageRecordsConfig(files=[], batch_size=1)
    held_out = [
        image
        for images in readable_records(shards, range(len(shards)), lambda raw: images_of_record(raw, stream))
        for image in images
    ]
    not_compared = list(image_sets.not_checked)
    for name, images in image_sets.training.items():
        try:
            found = shared_images(images, held_out)
        except UserError as error:
            not_compared.append(f"{name}: {error}")
            continue
        if found.shared:
            first = found.pairs[0]
            raise UserError(
                f"{counted(found.shared, 'image was', 'images were')} used in training, such as {first.held_out}, "
                f"which is {first.training}",
                where=f"--records {' '.join(records)}",
                remedy="pass records on which the run was not trained",
            )
    return not_compared


def _row(examples: Examples, fitted: Fitted) -> str:
    from metrics.calibration import area_under_roc, reliability

    before = reliability(examples.matching, examples.labels).error
    after, area = reliability(fitted.held_out, examples.labels).error, area_under_roc(fitted.held_out, examples.labels)
    return f"{len(examples.labels):>9,}{before:>14.3f}{after:>8.3f}{area:>8.3f}  {fitted.kind}"


def _draw(found: Calibrated, path: Path) -> None:
    """Draws the share of true examples over their mean probability, before and after calibration."""
    import altair

    from metrics.calibration import reliability

    charts = []
    for title, (examples, fitted) in (
        ("A phrase describes a box", found.pairs),
        ("A phrase is in an image", found.phrases),
    ):
        rows = [
            {"which": which, "probability": float(mean), "share of true examples": float(share), "examples": int(count)}
            for which, values in (("before", examples.matching), ("after", fitted.held_out))
            for count, mean, share in zip(*reliability(values, examples.labels), strict=True)
        ]
        unit = altair.Scale(domain=[0, 1])
        base = altair.Chart(altair.Data(values=rows)).encode(
            x=altair.X("probability:Q", scale=unit),
            y=altair.Y("share of true examples:Q", scale=unit),
            color=altair.Color("which:N", sort=["before", "after"], title=None),
        )
        points = base.mark_point(filled=True).encode(size=altair.Size("examples:Q", legend=None))
        ends = altair.Data(values=[{"probability": end, "share of true examples": end} for end in (0, 1)])
        diagonal = altair.Chart(ends).mark_line(color="grey", strokeDash=[4, 4])
        diagonal = diagonal.encode(x="probability:Q", y="share of true examples:Q")
        charts.append((diagonal + base.mark_line() + points).properties(title=title, width=280, height=280))
    altair.hconcat(*charts).save(str(path), scale_factor=2)

"""METEOR and SPICE, which exist only as Java programs. The optional package pycocoevalcap runs them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
from collections.abc import Sequence
from typing import Any

from utils.errors import UserError
from utils.extras import install_command

SCORERS = {"METEOR": ("pycocoevalcap.meteor.meteor", "Meteor"), "SPICE": ("pycocoevalcap.spice.spice", "Spice")}
"""Module and class of each metric."""


def java_metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, float]:
    """Computes the metrics in ``names`` for tokenized captions (:func:`metrics.captions.tokenize`). The metrics are in 0..1.

    SPICE downloads its models on first use.

    Raises:
        UserError: if a name is unknown, if pycocoevalcap or Java is missing, or if the program failed.
    """
    check_java_metrics(names)
    references_by_image = {index: list(texts) for index, texts in enumerate(references)}
    candidates_by_image = {index: [candidate] for index, candidate in enumerate(candidates)}
    results = {}
    for name in names:
        module, class_name = SCORERS[name]
        scorer = None
        try:
            scorer = getattr(importlib.import_module(module), class_name)()
            score, _ = scorer.compute_score(references_by_image, candidates_by_image)
        # The programs fail in many ways: no network, too little memory, a Java version that is too old or too new.
        except BaseException as error:
            if name == "METEOR" and scorer is not None:
                _release(scorer)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            raise UserError(
                f"{name} failed in pycocoevalcap: {error!r:.300}", remedy="remove this metric, or fix its Java set-up"
            ) from None
        results[name] = float(score)
    return results


def _release(meteor: Any) -> None:
    """Prepares a ``Meteor`` object that has failed for its destructor. Otherwise, the destructor would wait for a lock that the
    object still holds, and then close the pipe to a program that may have ended."""
    if (lock := getattr(meteor, "lock", None)) is not None and lock.locked():
        lock.release()
    with contextlib.suppress(OSError, AttributeError):
        meteor.meteor_p.stdin.close()


def check_java_metrics(names: Sequence[str]) -> None:
    """Checks the requirements of :func:`java_metrics` before any work starts.

    Raises:
        UserError: if a name is unknown, or pycocoevalcap or Java is missing.
    """
    for name in names:
        if name not in SCORERS:
            raise UserError(
                f"{name} is not a metric of pycocoevalcap's Java programs", remedy=f"choose from {', '.join(SCORERS)}"
            )
    if not names:
        return
    needs = f"{names[0]} needs" if len(names) == 1 else f"{' and '.join(names)} need"
    alternative = "or remove this metric" if len(names) == 1 else "or remove these metrics"
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError(f"{needs} pycocoevalcap, which is not installed: {install_command('captions')}, {alternative}")
    if shutil.which("java") is None:
        raise UserError(f"{needs} Java, and there is no java on the PATH: install a Java runtime, {alternative}")

"""The commands of ``run.py``, apart from running a task. Each command has its own module.

A command is a function whose parameters become flags (:mod:`utils.commands`), with an entry in :data:`COMMANDS`. Its module is
imported only when the command runs or its help is printed.
"""

from __future__ import annotations

from utils.subcommands import Command

COMMANDS = {
    "config": Command(
        "commands.config:config", "show the keys of a task's config, or the values in a file and where they come from"
    ),
    "doctor": Command(
        "commands.doctor:doctor",
        "check files, data, weights, memory and one training step before a run, in half a minute",
    ),
    "prepare": Command(
        "commands.prepare:prepare", "convert the official files of public data sets to records for pre-training"
    ),
    "migrate": Command(
        "commands.migrate:migrate",
        "convert a config of the authors' code, and the lists that it names, to our formats",
    ),
    "index-shards": Command(
        "commands.index_shards:index_shards",
        "index the records in a run's shards before it starts, with several processes",
    ),
    "rescore": Command(
        "commands.rescore:rescore", "score predicted boxes against several sets of annotations, such as RefCOCO's"
    ),
    "leaks": Command("commands.leaks:leaks", "find images that training data share with held-out splits"),
    "tables": Command("commands.tables:tables", "list the cells of the paper's tables, and the files that are missing"),
    "reproduce": Command(
        "commands.reproduce:reproduce",
        "run cells of the paper's tables, and compare the numbers with the published ones",
    ),
    "sweep": Command("commands.sweep:sweep", "run variants of a config one after another, and print one table"),
    "report": Command("commands.report:report", "write an HTML page about a run, or about several runs side by side"),
    "status": Command(
        "commands.status:status", "show how runs are doing: progress, losses, checkpoints, slow ranks, faults"
    ),
    "checkpoint": Command(
        "commands.checkpoint:checkpoint",
        "inspect weight files, convert them between the published names and ours, and compare them",
    ),
    "predict": Command("commands.predict:predict", "apply a trained model to your images"),
    "calibrate": Command(
        "commands.calibrate:calibrate", "fit the probabilities of boxes and phrases to held-out records"
    ),
    "score-boxes": Command("commands.score_boxes:score_boxes", "score the boxes of a detector again with a model"),
    "benchmark": Command(
        "commands.benchmark:benchmark", "measure what a model understands without fine-tuning, on published suites"
    ),
    "index": Command("commands.index:index", "embed a folder of images, so that you can search it with a sentence"),
    "search": Command(
        "commands.search:search", "search an index of images with a sentence, and show where in each image it applies"
    ),
    "export": Command("commands.export:export", "write a trained model as ONNX graphs, for machines without a GPU"),
    "serve": Command("commands.serve:serve", "serve a web page on which anyone can try models"),
    "plan": Command("commands.plan:plan", "find the largest micro-batch that fits, and how long a run takes"),
    "tokenizer": Command("commands.tokenizer:tokenizer", "train a tokenizer on the texts of your records"),
    "completion": Command(
        "commands.app:completion", "print a script that makes your shell complete commands and flags"
    ),
}

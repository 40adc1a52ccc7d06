"""The commands of ``run.py`` other than running a task, one module for each.

A command is a function, whose parameters become flags (:mod:`utils.commands`), and a line in :data:`COMMANDS`. Its module is
imported only when the command runs or its help is printed.
"""

from __future__ import annotations

from utils.subcommands import Command

COMMANDS = {
    "config": Command(
        "commands.config:config", "the keys of a task's config, or the values in a file and where they come from"
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
        "turn a config of the authors' code into ours, with its lists and a table of its keys",
    ),
    "index-shards": Command(
        "commands.index_shards:index_shards", "find where each record of a run's shards begins, with several processes"
    ),
    "rescore": Command(
        "commands.rescore:rescore", "score predicted boxes against several annotations, such as RefCOCO's"
    ),
    "leaks": Command("commands.leaks:leaks", "find images that training data share with held-out splits"),
    "tables": Command("commands.tables:tables", "the cells of the paper's tables, and which of their files are here"),
    "reproduce": Command(
        "commands.reproduce:reproduce",
        "run cells of the paper's tables, and compare the numbers with the published ones",
    ),
    "sweep": Command("commands.sweep:sweep", "run variants of a config one after another, and print one table"),
    "report": Command("commands.report:report", "one HTML page of a run, or of several runs side by side"),
    "status": Command(
        "commands.status:status", "how runs are doing: progress, losses, checkpoints, slow ranks, faults"
    ),
    "checkpoint": Command(
        "commands.checkpoint:checkpoint",
        "inspect weight files, convert them between the published names and ours, and compare them",
    ),
    "predict": Command("commands.predict:predict", "ask a trained model about your images"),
    "benchmark": Command(
        "commands.benchmark:benchmark", "measure what a model understands without fine-tuning, on published suites"
    ),
    "index": Command("commands.index:index", "embed a folder of images, to search it with a sentence"),
    "search": Command("commands.search:search", "find the images of an index that a sentence describes, and where"),
    "export": Command("commands.export:export", "write a trained model as ONNX graphs, for machines without a GPU"),
    "serve": Command("commands.serve:serve", "a web page on which anyone can try models"),
    "plan": Command("commands.plan:plan", "the largest micro-batch that fits, and how long a run takes"),
    "tokenizer": Command("commands.tokenizer:tokenizer", "train a tokenizer on the texts of your records"),
    "completion": Command("run:completion", "a script with which your shell completes commands and flags"),
}

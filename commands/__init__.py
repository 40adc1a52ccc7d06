"""What a user can do beside running a task: the commands of ``run.py``, one module for each.

A command is a function, whose parameters become flags (:mod:`utils.commands`), and a line in :data:`COMMANDS`. Its module is
imported only when the command runs, or its own help is printed.
"""

from __future__ import annotations

from utils.subcommands import Command

COMMANDS = {
    "config": Command(
        "commands.config:config", "the keys of a task's config, or a file's values and where they come from"
    ),
    "doctor": Command(
        "commands.doctor:doctor",
        "check files, data, weights, memory and one step before a run, in half a minute",
    ),
    "prepare": Command(
        "commands.prepare:prepare", "records for pre-training from the official files of public data sets"
    ),
    "index-shards": Command(
        "commands.index_shards:index_shards", "where each record of a run's shards begins, by several processes"
    ),
    "leaks": Command("commands.leaks:leaks", "images that training data share with held-out splits"),
    "tables": Command("commands.tables:tables", "the cells of the paper's tables, and which of their files are here"),
    "reproduce": Command(
        "commands.reproduce:reproduce", "run cells of the paper's tables; numbers beside the published ones"
    ),
    "sweep": Command("commands.sweep:sweep", "variants of a config one after another, and one table"),
    "report": Command("commands.report:report", "one HTML page of a run, or of several side by side"),
    "status": Command(
        "commands.status:status", "how runs are doing: progress, losses, checkpoints, slow ranks, faults"
    ),
    "checkpoint": Command(
        "commands.checkpoint:checkpoint",
        "what a weight file is, its published or our form, and how two files differ",
    ),
    "predict": Command("commands.predict:predict", "ask a trained model about your images"),
    "index": Command("commands.index:index", "embed a folder of images, to search it by a sentence"),
    "search": Command("commands.search:search", "the images of an index that a sentence is about, and where"),
    "export": Command("commands.export:export", "a trained model as graphs of ONNX, for machines without a GPU"),
    "serve": Command("commands.serve:serve", "a page in the browser on which anyone tries models"),
    "plan": Command("commands.plan:plan", "the largest micro-batch that fits, and how long a run takes"),
    "tokenizer": Command("commands.tokenizer:tokenizer", "learn a tokenizer from the texts of your records"),
    "completion": Command("run:completion", "a script with which your shell completes commands and flags"),
}

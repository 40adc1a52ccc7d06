"""Multi-grained pre-training (X²-VLM, section 3): ``python Pretrain.py --config FILE [--output DIR] [key=value ...]``.

One process without a launcher; ``run.py`` starts it on many.
"""

import sys
from pathlib import Path

from engine.run_folder import RunFolder
from engine.trainer import Trainer
from tasks import TASKS
from tasks.pretrain import PretrainConfig, PretrainTask
from utils import logging
from utils.config import load_config
from utils.distributed import process_group
from utils.errors import one_line_errors
from utils.launcher import parse_script


@one_line_errors
def main() -> int:
    arguments = parse_script(sys.argv[1:], "pretrain", TASKS["pretrain"], Path(__file__).parent)
    config = load_config(arguments.config, arguments.overrides, PretrainConfig)
    with process_group() as device:
        folder, checkpoint = RunFolder.open(Path(arguments.output), config, arguments.resume)
        logging.set_up(folder.log)
        task = PretrainTask(config, checkpoint)
        trainer = Trainer(
            task,
            train=config.train,
            optim=config.optim,
            schedule=config.schedule,
            seed=config.seed,
            folder=folder,
            device=device,
            checkpoint=checkpoint,
        )
        trainer.fit()
        if table := task.report(folder.path):
            print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

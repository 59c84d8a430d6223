"""The trainings whose steps are benchmarked: the paper's, or that of a config."""

import dataclasses
from pathlib import Path

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.bench.shapes import PLANS, paper_net
from jaxmamba3d.checks import check_count
from jaxmamba3d.config import NetConfig, OptimConfig, TrainConfig
from jaxmamba3d.config_file import load_config
from jaxmamba3d.data import open_workspace
from jaxmamba3d.labels import Labels
from jaxmamba3d.run import describe_run
from jaxmamba3d.training import Task


@dataclasses.dataclass(frozen=True)
class Training:
    """What decides a training step.

    Args:
        dataset: its name.
        net: what is trained.
        task: what it learns.
        optim, train: by which optimizer, and in which parts.
    """

    dataset: str
    net: NetConfig
    task: Task
    optim: OptimConfig
    train: TrainConfig

    def on_chips(self, chips: int, batch_per_chip: int) -> "Training":
        """The training with a batch of so many patches on each chip at once.

        Raises:
            ValueError: a batch below 1.
        """
        check_count("batch_per_chip", batch_per_chip)
        batch_size = chips * batch_per_chip * self.train.accumulate
        return dataclasses.replace(self, task=dataclasses.replace(self.task, batch_size=batch_size))


def paper_training(net: str, dataset: str, **options) -> Training:
    """The training of one of the paper's networks at full size; options: of the `NetConfig`, such as dtype.

    Raises:
        ValueError: an unknown name.
    """
    config = paper_net(net, dataset, **options)
    plan = PLANS[dataset]
    labels = Labels({"background": (0,)} | {f"class {k}": (k,) for k in range(1, plan.num_classes)})
    task = Task(plan.batch, plan.in_channels, labels, False, AugmentationPlan(plan.patch))
    return Training(dataset, config, task, OptimConfig(), TrainConfig())


def config_training(path: str | Path) -> Training:
    """The training that a config describes; its dataset must have been planned.

    Args:
        path: of the config file, or FILE.py:WORD; see `load_config`.

    Raises:
        FileNotFoundError, ValueError: there is no such config, or the net does not fit the plans.
    """
    config = load_config(path)
    run = describe_run(config, open_workspace(config.work_folder))
    return Training(run.plans.dataset_name, run.net, run.task(), config.optim, config.train)

"""The command line: argument parsing only.

A command imports what it runs when it is called: jax and its company take seconds, which planning and
preprocessing would wait for in vain.
"""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxmamba3d.checks import check_that
from jaxmamba3d.command import run_command
from jaxmamba3d.config import ExperimentConfig, NetName
from jaxmamba3d.config_file import load_config

Positional = tyro.conf.Positional
Processes = Annotated[int | None, tyro.conf.arg(help="worker processes; default: one per core")]


def plan(
    dataset: Positional[Path],
    /,
    output: Path,
    plans: Path | None = None,
    splits: Path | None = None,
    memory: float | None = None,
    spacing: tuple[float, float, float] | None = None,
    processes: Processes = None,
) -> None:
    """Check a dataset and plan spacing, patch size, normalisation and net for it.

    Args:
        dataset: folder in the Decathlon's or nnU-Net's raw layout, or BTCV or ACDC as they are shipped.
        output: work folder to make.
        plans: an nnUNetPlans.json to take instead of planning.
        splits: a splits_final.json to take instead of the 5-fold rule; cases that it leaves out are test
            cases.
        memory: device memory to plan for in GB; default: nnU-Net's 8.
        spacing: voxel size in mm in place of the planned one, in the order of the patch's axes.
    """
    from jaxmamba3d.data import plan_workspace

    plan_workspace(
        dataset,
        output,
        plans_file=plans,
        splits_file=splits,
        memory_gb=memory,
        spacing=spacing,
        processes=processes,
    )


def preprocess(
    work: Positional[Path], /, configuration: str = "3d_fullres", processes: Processes = None
) -> None:
    """Preprocess the cases of a work folder; finished ones are kept.

    Args:
        work: the folder that `jaxmamba3d plan` made.
        configuration: which of the plans' configurations.
    """
    from jaxmamba3d.data import open_workspace

    open_workspace(work).preprocess(configuration, processes=processes)


def predict(
    run: Positional[Path],
    /,
    input: Path,
    output: Path,
    folds: tuple[int, ...] = (),
    checkpoint: Literal["latest", "best"] = "latest",
    no_mirroring: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    no_postprocessing: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Segment all images of a folder; a call that was interrupted resumes where it stopped.

    Args:
        run: folder of a training run.
        input: folder of images, CASE.nii.gz or CASE_0000.nii.gz, CASE_0001.nii.gz for channels; or a dataset,
            as for `plan`: its cases that are in none of the run's folds, or all if all are.
        output: folder of the segmentations CASE.nii.gz.
        folds: trained folds to average; default: those fully trained, or else all.
        checkpoint: latest or best.
        no_mirroring: do not average over mirrored copies, an 8th of the work, whatever the run's config says.
        probabilities: also write CASE.npz with the probabilities of all classes, [K, z, y, x], to which
            no post-processing is done.
        no_postprocessing: keep all components, whatever raised Dice on the run's validation cases.
    """
    from jaxmamba3d import experiment
    from jaxmamba3d import run as runs
    from jaxmamba3d.training import keep_compiled_programs, use_all_cores

    trained = runs.open_run(run)
    use_all_cores()
    keep_compiled_programs(run)
    found = folds or experiment.folds_to_predict(trained)
    cases = experiment.cases_to_predict(trained, input)
    mirroring = False if no_mirroring else None
    experiment.predict(
        trained,
        cases,
        output,
        folds=found,
        checkpoint=checkpoint,
        mirroring=mirroring,
        probabilities=probabilities,
        postprocessing=None if no_postprocessing else trained.postprocessing(),
    )


def ensemble(
    predictions: Positional[tuple[Path, ...]],
    /,
    output: Path,
    probabilities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    processes: int = 1,
) -> None:
    """Segment cases by the mean of the probabilities that several models predicted for them.

    Args:
        predictions: two or more folders that `predict --probabilities`, or nnU-Net with --save_probabilities,
            wrote for the same images.
        output: folder of the segmentations CASE.nii.gz; empty, or to be made.
        probabilities: also write CASE.npz with the means.
        processes: worker processes, each of which holds the probabilities of a case by two models.
    """
    from jaxmamba3d.data import ensemble_folders

    ensemble_folders(predictions, output, probabilities=probabilities, processes=processes)


def evaluate(
    predictions: Positional[Path],
    labels: Positional[Path],
    /,
    output: Path | None = None,
    protocol: str = "default",
    cases: tuple[str, ...] = (),
) -> None:
    """Score segmentations: Dice and HD95 for each case and class as CSV, JSON, Markdown and LaTeX.

    Args:
        predictions: folder of CASE.nii.gz.
        labels: folder of the true CASE.nii.gz; or a dataset, as for `plan`: those of its cases that are
            predicted.
        output: folder of the tables; default: PREDICTIONS/scores.
        protocol: default, synapse8, synapse13, acdc or brats.
        cases: to score; default: all of both folders.
    """
    from jaxmamba3d.evaluation import evaluate_folders

    output = output or predictions / "scores"
    evaluate_folders(predictions, labels, output, protocol=protocol, cases=cases or None)
    sys.stdout.write((output / "summary.md").read_text(encoding="utf-8"))


def compare(
    models: Positional[tuple[Path, ...]],
    /,
    output: Path,
    names: tuple[str, ...] = (),
    common_cases: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    images: Path | None = None,
    labels: Path | None = None,
    predictions: tuple[Path, ...] = (),
    cases: tuple[str, ...] = (),
    rows: int = 4,
    channel: int = 0,
) -> None:
    """Put models side by side: a table of Dice and HD95, and with --images and --labels a figure of errors.

    Args:
        models: folders of scores, of predictions that were scored, or of runs, whose folds are put together.
        output: folder of comparison.md, comparison.csv, comparison.tex and comparison.png.
        names: of the models; default: their folders'.
        common_cases: leave out cases that not all models were scored on.
        images: folder of the cases' images, for the figure.
        labels: folder of the true CASE.nii.gz, for the figure.
        predictions: a folder of CASE.nii.gz for each model; default: where the scores were found.
        cases: to draw; default: from the worst to the best by Dice, evenly.
        rows: how many cases to draw unless they are named.
        channel: of the images to draw.
    """
    from jaxmamba3d.evaluation import (
        comparable,
        compare_models,
        comparison_figure,
        find_models,
        read_comparison_cases,
        telling_cases,
    )

    check_that((images is None) == (labels is None), "images and labels", "given both or neither", "one")
    check_that(rows >= 1, "rows", "at least 1", rows)
    found = comparable(find_models(models, names), common_cases=common_cases)
    compare_models(found, output)
    if images is not None:
        drawn = read_comparison_cases(
            found,
            cases or telling_cases(found, rows),
            images,
            labels,
            predictions=predictions,
            channel=channel,
        )
        comparison_figure(drawn, output / "comparison.png", class_names=found[0].protocol.names)
    sys.stdout.write((output / "comparison.md").read_text(encoding="utf-8"))


def report(run: Positional[Path], /, output: Path | None = None) -> None:
    """Write a run's settings, curves, scores and pictures as one HTML file, at any time, during training too.

    Args:
        run: folder of a training run.
        output: the file; default: RUN/report.html.
    """
    from jaxmamba3d import experiment
    from jaxmamba3d import run as runs

    experiment.write_report(runs.open_run(run), output)


def import_weights(
    file: Positional[Path],
    /,
    output: Path,
    net: NetName = "segmamba",
    plans: Path | None = None,
    dataset_json: Path | None = None,
    configuration: str | None = None,
    fold: int | None = None,
    splits: Path | None = None,
) -> None:
    """Make a run folder, ready to predict, of a network trained with the authors' PyTorch code.

    Args:
        file: its checkpoint: a .pth of PyTorch, or the state_dict as .safetensors or .npz.
        output: run folder to make.
        net: which network it is.
        plans: the nnUNetPlans.json it was trained with; default: what the checkpoint holds.
        dataset_json: the dataset.json of its data; default: what the checkpoint holds.
        configuration: which of the plans' configurations; default: the checkpoint's, or 3d_fullres.
        fold: its number in the run; several folds may be imported into one run; default: the checkpoint's, or
            0.
        splits: the splits_final.json it was trained on, by which `predict` tells a dataset's test cases.
    """
    from jaxmamba3d import experiment

    experiment.import_checkpoint(
        file,
        output,
        net=net,
        plans=plans,
        dataset_json=dataset_json,
        configuration=configuration,
        fold=fold,
        splits=splits,
    )


def train(arguments: list[str] | None = None) -> None:
    """Run an experiment: `train CONFIG.py [--field value ...]`; `train CONFIG.py --help` lists the fields.

    `CONFIG.py:WORD` is what a config makes of a word, such as configs/acdc.py:segmamba.
    """
    from jaxmamba3d import experiment
    from jaxmamba3d.training import join_processes, keep_compiled_programs, use_all_cores

    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(inspect.cleandoc(train.__doc__) + "\n")
        return
    if not arguments or arguments[0].startswith("-"):
        wanted = "the path of a config file first, such as configs/quickstart.py (then --help lists fields)"
        raise ValueError(f"train must be given {wanted}, got {' '.join(arguments) or 'nothing'}")
    config = tyro.cli(
        ExperimentConfig,
        prog=f"train {arguments[0]}",
        default=load_config(arguments[0]),
        args=arguments[1:],
        config=(tyro.conf.AvoidSubcommands,),
    )
    use_all_cores()
    if config.train.distributed:
        join_processes()
    keep_compiled_programs(Path(config.output))
    experiment.run_experiment(config)


def bench() -> None:
    """Measure speed and memory: `bench scan`, `bench net`, `bench pipeline`."""
    from jaxmamba3d.bench.commands import COMMANDS as measurements

    tyro.extras.subcommand_cli_from_dict(measurements, prog="jaxmamba3d bench", args=sys.argv[2:])


COMMANDS = {
    "plan": plan,
    "preprocess": preprocess,
    "train": train,
    "predict": predict,
    "ensemble": ensemble,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "import-weights": import_weights,
    "bench": bench,
}


def main() -> None:
    """The `jaxmamba3d` command; `train` and `bench` parse their arguments themselves."""
    if sys.argv[1:2] == ["train"]:
        run_command(lambda: train(sys.argv[2:]))
    elif sys.argv[1:2] == ["bench"]:
        run_command(bench)
    else:
        run_command(lambda: tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="jaxmamba3d"))

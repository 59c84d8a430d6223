"""An experiment from its data to its scores: prepare, train, validate."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.config import DataConfig, ExperimentConfig, NetConfig, NetOptions, read_json, to_json
from jaxmamba3d.data import (
    Case,
    Configuration,
    Description,
    Plans,
    Workspace,
    load_plans,
    plan_workspace,
    read_label,
    read_volume,
    save_plans,
    write_phantom_dataset,
)
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.evaluation import Evaluation, OverlayCase, Pair, Protocol, evaluate_pairs, overlay_figure
from jaxmamba3d.inference import make_net_predictor, predict_cases
from jaxmamba3d.nets import UNet3D, build_net, load_official_weights
from jaxmamba3d.training import restore_params, save_params, train_fold

logger = logging.getLogger(__name__)

OVERLAY_CASES = 6
IGNORE = "ignore"
"""nnU-Net's name of the label whose voxels count nowhere."""


@dataclass(frozen=True)
class Run:
    """A run folder: the config, the net and the plans that its folds share.

    Holds config.json, net.json, nnUNetPlans.json, labels.json, splits_final.json and versions.json, and for
    each fold `fold_K/` with metrics.csv, curves.png, tensorboard/, checkpoints/, validation/ and scores.
    """

    folder: Path
    config: ExperimentConfig
    net: NetConfig
    plans: Plans
    labels: dict[str, int]

    @property
    def configuration(self) -> Configuration:
        """The plans' configuration that this run trains."""
        return self.plans.configurations[self.config.data.configuration]

    @property
    def foreground(self) -> dict[str, int]:
        """The structures that are scored, by name."""
        return {name: label for name, label in self.labels.items() if label and name != IGNORE}

    def fold_folder(self, fold: int) -> Path:
        """Results of one fold."""
        return self.folder / f"fold_{fold}"

    def trained_folds(self) -> tuple[int, ...]:
        """The folds that have a checkpoint."""
        found = self.folder.glob("fold_*/checkpoints")
        return tuple(sorted(int(path.parent.name.removeprefix("fold_")) for path in found))

    def build_net(self) -> UNet3D:
        """The net, freshly initialised from the config's seed."""
        return build_net(self.net, rngs=nnx.Rngs(self.config.train.seed))

    def abstract_net(self) -> UNet3D:
        """The net with shapes in place of weights, made in no time."""
        return nnx.eval_shape(self.build_net)


def run_experiment(config: ExperimentConfig) -> Evaluation:
    """Does all of an experiment that is not done yet, and returns the validation scores of its fold."""
    workspace = prepare(config)
    run = start_run(config, workspace)
    train(run, workspace)
    return validate(run, workspace)


def prepare(config: ExperimentConfig) -> Workspace:
    """Makes the phantoms if asked for, checks and plans the dataset, and preprocesses its cases."""
    data = config.data
    check_that(bool(data.dataset), "data.dataset", "the folder of the dataset", "nothing")
    if data.phantoms is not None and not Path(data.dataset).exists():
        write_phantom_dataset(data.dataset, data.phantoms)
    work = Path(data.work or Path(config.output) / "work")
    workspace = plan_workspace(data.dataset, work, plans_file=data.plans, splits_file=data.splits)
    workspace.split(data.fold)
    workspace.preprocess(data.configuration)
    return workspace


def start_run(config: ExperimentConfig, workspace: Workspace) -> Run:
    """Writes the run folder of an experiment; its plans hold the config's overrides.

    Raises:
        ValueError: the net does not fit the plans or the patch, or the folder holds a trained run of another
            net or other data.
    """
    dataset = workspace.dataset
    run = _write_run(config, workspace.plans, len(dataset.channel_names), dataset.labels)
    _write_json(run.folder / "splits_final.json", workspace.splits)
    return run


def import_weights(
    weights: Mapping[str, np.ndarray], config: ExperimentConfig, plans: Plans, description: Description
) -> Run:
    """Makes a run folder, ready to predict, of a network that the authors' code trained.

    Args:
        weights: the network's state_dict under the authors' names.
        config: its output, net and data.configuration, patch size and fold describe the run.
        plans: that the network was trained with.
        description: of the training data.

    Raises:
        ValueError: the weights are not those of the net that config and plans describe; see
            `load_official_weights`; or the folder holds a trained run of another net or other data.
        FileExistsError: the run folder has a trained fold of this number already.
    """
    configuration = _overridden(config.data, plans).configurations[config.data.configuration]
    net_config = resolve_net(config.net, configuration, len(description.channel_names), description.labels)
    net = nnx.eval_shape(lambda: build_net(net_config, rngs=nnx.Rngs(0)))
    load_official_weights(net, weights)
    run = _write_run(config, plans, len(description.channel_names), description.labels)
    save_params(run.fold_folder(config.data.fold) / "checkpoints", nnx.state(net, nnx.Param))
    return run


def _write_run(config: ExperimentConfig, plans: Plans, channels: int, labels: dict[str, int]) -> Run:
    plans = _overridden(config.data, plans)
    configuration = plans.configurations[config.data.configuration]
    net = resolve_net(config.net, configuration, channels, labels)
    for axis, size, stride in zip("XYZ", configuration.patch_size, net.total_stride, strict=True):
        wanted = f"divisible by the net's {stride} along {axis}"
        check_that(size % stride == 0, "data.patch_size", wanted, configuration.patch_size)
    folder = Path(config.output)
    _check_same_run(folder, net, plans, labels)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "net.json").write_text(to_json(net))
    save_plans(plans, folder / "nnUNetPlans.json")
    _write_json(folder / "labels.json", labels)
    _write_json(folder / "versions.json", _versions())
    return open_run(folder)


def _check_same_run(folder: Path, net: NetConfig, plans: Plans, labels: dict[str, int]) -> None:
    """Refuses to describe a folder anew whose checkpoints were made under another description."""
    if not any(folder.glob("fold_*/checkpoints")):
        return
    run = open_run(folder)
    there, here = (
        {"net": dataclasses.asdict(net), "plans": dataclasses.asdict(plans), "labels": labels}
        for net, plans, labels in ((run.net, run.plans, run.labels), (net, plans, labels))
    )
    different = "; ".join(_differences(there, here))
    wish = "of the same net and data as now (or choose another output)"
    check_that(not different, f"the trained run {folder}", wish, different)


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Where two nested dictionaries differ, each place in a phrase."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield f"{name} {there} there, {here} here"


def _overridden(data: DataConfig, plans: Plans) -> Plans:
    """The plans with the config's patch and batch size."""
    check_choice("data.configuration", data.configuration, plans.configurations)
    configuration = plans.configurations[data.configuration]
    configuration = dataclasses.replace(
        configuration,
        patch_size=tuple(data.patch_size or configuration.patch_size),
        batch_size=data.batch_size or configuration.batch_size,
    )
    return dataclasses.replace(
        plans, configurations=plans.configurations | {data.configuration: configuration}
    )


def open_run(folder: str | Path) -> Run:
    """The run folder that an earlier call described.

    Raises:
        FileNotFoundError: it is not one.
    """
    folder = Path(folder)
    if not (folder / "net.json").is_file():
        raise FileNotFoundError(f"{folder}: not a run folder (it has no net.json); train.py makes one")
    return Run(
        folder,
        read_json(ExperimentConfig, folder / "config.json"),
        read_json(NetConfig, folder / "net.json"),
        load_plans(folder / "nnUNetPlans.json"),
        json.loads((folder / "labels.json").read_text()),
    )


def resolve_net(
    options: NetOptions, plan: Configuration, in_channels: int, labels: Mapping[str, int]
) -> NetConfig:
    """The net of an experiment: its own fields, and the plans' for those left None.

    Fewer features than the plans have stages make a shallower net of their first stages. The label `ignore`
    is no class.
    """
    stages = len(options.features or plan.features)
    check_that(
        stages <= len(plan.features),
        "net.features",
        f"at most the plans' {len(plan.features)} stages",
        stages,
    )
    return NetConfig(
        name=options.name,
        in_channels=in_channels,
        num_classes=len(labels.keys() - {IGNORE}),
        features=options.features or plan.features,
        kernel_sizes=plan.kernel_sizes[:stages],
        strides=plan.strides[:stages],
        blocks_per_stage=options.blocks_per_stage or plan.blocks_per_stage[:stages],
        decoder_blocks_per_stage=options.decoder_blocks_per_stage
        or plan.decoder_blocks_per_stage[: stages - 1],
        deep_supervision=options.deep_supervision,
        dtype=options.dtype,
        remat=options.remat,
        scan_implementation=options.scan_implementation,
    )


def train(run: Run, workspace: Workspace) -> None:
    """Trains the config's fold, or goes on where it stopped."""
    data, train_config = run.config.data, run.config.train
    split = workspace.split(data.fold)

    def batches(names: Sequence[str], seed: int):
        return training_batches(
            workspace.cases_folder(data.configuration),
            names,
            patch_size=run.configuration.patch_size,
            batch_size=run.configuration.batch_size,
            foreground_fraction=data.foreground_fraction,
            seed=seed,
            threads=data.read_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    identity = {
        "net": json.loads(to_json(run.net)),
        "labels": run.labels,
        "patch_size": list(run.configuration.patch_size),
        "batch_size": run.configuration.batch_size,
        "training cases": sorted(split["train"]),
    }
    train_fold(
        run.build_net(),
        run.config,
        batch_size=run.configuration.batch_size,
        batch_dice=run.configuration.batch_dice,
        training_batches=batches(split["train"], train_config.seed),
        validation_batches=lambda: batches(split["val"], train_config.seed + 1),
        ignore_label=run.labels.get(IGNORE),
        class_names=tuple(run.foreground),
        folder=run.fold_folder(data.fold),
        identity=identity,
    )


def predict(
    run: Run,
    cases: Sequence[Case],
    output: str | Path,
    *,
    folds: Sequence[int],
    checkpoint: str = "latest",
    mirroring: bool | None = None,
) -> None:
    """Segments cases with the mean logits of trained folds; see `predict_cases`.

    Args:
        run: the trained run.
        cases: image files.
        output: folder of the segmentations.
        folds: which folds to average.
        checkpoint: latest | best.
        mirroring: average over mirrored copies; None: as the config says.
    """
    check_choice("checkpoint", checkpoint, ("latest", "best"))
    net = run.abstract_net()
    template = nnx.state(net, nnx.Param)
    weights = [restore_params(run.fold_folder(fold) / "checkpoints", template, checkpoint) for fold in folds]
    config = run.config
    mirroring = config.predict.mirroring if mirroring is None else mirroring
    predictor = make_net_predictor(
        net,
        run.configuration.patch_size,
        run.net.num_classes,
        mirror_axes=config.train.mirror_axes if mirroring else (),
        window_batch=config.predict.window_batch,
    )
    predict_cases(
        predictor,
        weights,
        cases,
        run.plans,
        Path(output),
        configuration=config.data.configuration,
        tile_step=config.predict.tile_step,
    )


def validate(run: Run, workspace: Workspace) -> Evaluation:
    """Predicts the fold's validation cases, scores them and draws overlays."""
    fold = run.config.data.fold
    folder = run.fold_folder(fold)
    names = set(workspace.split(fold)["val"])
    cases = [case for case in workspace.dataset.cases if case.name in names]
    predict(run, cases, folder / "validation", folds=[fold])
    classes = {name: (label,) for name, label in run.foreground.items()}
    protocol = Protocol("dataset", classes, ignore_label=run.labels.get(IGNORE))
    pairs = [Pair(case.name, _prediction_file(folder / "validation", case), case.label) for case in cases]
    scores = evaluate_pairs(pairs, folder / "scores", protocol=protocol)
    class_names = {label: name for name, label in run.labels.items()}
    overlays = [_overlay(case, folder / "validation") for case in cases[:OVERLAY_CASES]]
    overlay_figure(overlays, folder / "overlays.png", class_names=class_names)
    for structure, statistics in scores.structures.items():
        dice, distance = statistics["dice"], statistics["hd95_mm"]
        logger.info("%s: Dice %.3f ± %.3f, HD95 %.2f mm", structure, dice.mean, dice.sd, distance.mean)
    logger.info("mean Dice %.3f; scores, curves and overlays are in %s", scores.mean["dice"], folder)
    return scores


def _prediction_file(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.nii.gz"


def _overlay(case: Case, predictions: Path) -> OverlayCase:
    image = read_volume(case.images)
    truth, _ = read_label(case.label)
    prediction, _ = read_label(_prediction_file(predictions, case))
    return OverlayCase(case.name, image.array[0], truth, prediction, spacing=image.spacing)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _versions() -> dict[str, str]:
    packages = ("jaxmamba3d", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return versions | {"python": platform.python_version(), "devices": f"{jax.device_count()} x {devices}"}

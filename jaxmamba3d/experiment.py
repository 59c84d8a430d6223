"""An experiment from its data to its scores: prepare, train, validate."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.config import ExperimentConfig, NetConfig, NetOptions, read_json, to_json
from jaxmamba3d.data import (
    Case,
    Configuration,
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
from jaxmamba3d.evaluation import Evaluation, OverlayCase, Protocol, evaluate_folders, overlay_figure
from jaxmamba3d.inference import make_net_predictor, predict_cases
from jaxmamba3d.nets import UNet3D, build_net
from jaxmamba3d.training import restore_params, train_fold

logger = logging.getLogger(__name__)

OVERLAY_CASES = 6


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
    """Writes the run folder's description; its plans hold the config's overrides."""
    data = config.data
    configuration = workspace.plans.configurations[data.configuration]
    configuration = dataclasses.replace(
        configuration,
        patch_size=tuple(data.patch_size or configuration.patch_size),
        batch_size=data.batch_size or configuration.batch_size,
    )
    plans = dataclasses.replace(
        workspace.plans, configurations=workspace.plans.configurations | {data.configuration: configuration}
    )
    dataset = workspace.dataset
    net = resolve_net(config.net, configuration, len(dataset.channel_names), len(dataset.labels))
    for axis, size, stride in zip("XYZ", configuration.patch_size, net.total_stride, strict=True):
        wanted = f"divisible by the net's {stride} along {axis}"
        check_that(size % stride == 0, "data.patch_size", wanted, configuration.patch_size)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "net.json").write_text(to_json(net))
    save_plans(plans, folder / "nnUNetPlans.json")
    for name, content in (
        ("labels", dataset.labels),
        ("splits_final", workspace.splits),
        ("versions", _versions()),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return open_run(folder)


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


def resolve_net(options: NetOptions, plan: Configuration, in_channels: int, num_classes: int) -> NetConfig:
    """The net of an experiment: its own fields, and the plans' for those left None.

    Fewer features than the plans have stages make a shallower net of their first stages.
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
        num_classes=num_classes,
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
        class_names=tuple(name for name, label in run.labels.items() if label),
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
    protocol = Protocol("dataset", {name: (label,) for name, label in run.labels.items() if label})
    labels_folder = cases[0].label.parent
    scores = evaluate_folders(
        folder / "validation", labels_folder, folder / "scores", protocol=protocol, cases=names
    )
    class_names = {label: name for name, label in run.labels.items()}
    overlays = [_overlay(case, folder / "validation") for case in cases[:OVERLAY_CASES]]
    overlay_figure(overlays, folder / "overlays.png", class_names=class_names)
    for structure, statistics in scores.structures.items():
        dice, distance = statistics["dice"], statistics["hd95_mm"]
        logger.info("%s: Dice %.3f ± %.3f, HD95 %.2f mm", structure, dice.mean, dice.sd, distance.mean)
    logger.info("mean Dice %.3f; scores, curves and overlays are in %s", scores.mean["dice"], folder)
    return scores


def _overlay(case: Case, predictions: Path) -> OverlayCase:
    image = read_volume(case.images)
    truth, _ = read_label(case.label)
    prediction, _ = read_label(predictions / f"{case.name}.nii.gz")
    return OverlayCase(case.name, image.array[0], truth, prediction, spacing=image.spacing)


def _versions() -> dict[str, str]:
    packages = ("jaxmamba3d", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return versions | {"python": platform.python_version(), "devices": f"{jax.device_count()} x {devices}"}

"""Run folders that begin: how a run is described, and what must be as its trained folds have it."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxmamba3d.checks import check_choice, check_that, differences
from jaxmamba3d.config import DataConfig, ExperimentConfig, NetConfig, NetOptions
from jaxmamba3d.config_json import to_json
from jaxmamba3d.data import (
    Configuration,
    Description,
    Plans,
    Split,
    Workspace,
    save_plans,
)
from jaxmamba3d.data.workspace import PLANS, SPLITS
from jaxmamba3d.files import write_json, write_text
from jaxmamba3d.labels import Labels
from jaxmamba3d.machine import installed_versions
from jaxmamba3d.nets import abstract_net, load_official_weights
from jaxmamba3d.run.folder import (
    CONFIG,
    DEVICES,
    LABELS,
    NET,
    ORIENTATIONS,
    VERSIONS,
    Run,
    lacking_files,
    open_run,
    run_lock,
)
from jaxmamba3d.training import (
    SETTINGS,
    check_path,
    has_checkpoint,
    is_imported,
    read_saved,
    save_params,
)


def describe_run(config: ExperimentConfig, workspace: Workspace) -> Run:
    """The run of an experiment, of which nothing is written; its plans hold the config's overrides.

    Raises:
        ValueError: the net does not fit the plans or the patch, or the folder holds a trained run of another
            net or other data.
    """
    dataset = workspace.dataset
    run = _describe(config, workspace.plans, len(dataset.channel_names), dataset.labels)
    if run.begun_folds() and (splits := run.splits()):
        same = splits == [dict(split) for split in workspace.splits]
        wanted = f"split as its trained folds are, by {run.folder / SPLITS} (or choose another output)"
        check_that(same, str(workspace.folder), wanted, "other splits")
    return run


def start_run(
    config: ExperimentConfig, workspace: Workspace, locks: contextlib.ExitStack | None = None
) -> Run:
    """Writes the run folder of an experiment.

    Args:
        config: the experiment.
        workspace: its data.
        locks: until it is closed, others are kept from the first fold to be trained; see `Run.fold_lock`.

    Raises:
        ValueError: see `describe_run`; or a process trains one of the folds already.
    """
    with run_lock(config.output), contextlib.ExitStack() as lock:
        run = describe_run(config, workspace)
        first, *others = workspace.folds(config.data.fold)
        lock.enter_context(run.fold_lock(first))
        for fold in others:
            run.check_free(fold)
        run = _write(run)
        write_json(run.folder / SPLITS, workspace.splits)
        write_json(run.folder / ORIENTATIONS, workspace.orientations)
        if locks is not None:
            locks.enter_context(lock.pop_all())
    return run


def import_weights(
    weights: Mapping[str, np.ndarray],
    config: ExperimentConfig,
    plans: Plans,
    description: Description,
    splits: Sequence[Split] | None = None,
) -> Run:
    """Makes a run folder, ready to predict, of a network that the authors' code trained.

    Args:
        weights: the network's state_dict under the authors' names.
        config: its output, net and data.configuration, patch size and fold describe the run.
        plans: that the network was trained with.
        description: of the training data.
        splits: that it was trained on, which tell its dataset's test cases; None: not known.

    Raises:
        ValueError: the weights are not those of the net that config and plans describe; see
            `load_official_weights`; the folder holds a trained run of another net or other data; or a process
            trains this fold.
        FileExistsError: the run folder has a trained fold of this number already.
    """
    check_that(config.data.fold != "all", "data.fold", "the number of one fold", config.data.fold)
    check_path(Path(config.output))
    configuration = _overridden(config.data, plans).configurations[config.data.configuration]
    net_config = resolve_net(config.net, configuration, len(description.channel_names), description.labels)
    net = abstract_net(net_config)
    load_official_weights(net, weights)
    fold = config.data.fold
    with run_lock(config.output):
        run = _describe(config, plans, len(description.channel_names), description.labels)
        checkpoints = run.checkpoints(fold)
        if has_checkpoint(checkpoints):
            words = "has checkpoints already; choose another output folder or fold"
            raise FileExistsError(f"{checkpoints}: {words}")
        with run.fold_lock(fold):
            run = _write(run)
            if splits is not None:
                write_json(run.folder / SPLITS, splits)
            save_params(checkpoints, nnx.state(net, nnx.Param))
    return run


def _describe(config: ExperimentConfig, plans: Plans, channels: int, labels: Labels) -> Run:
    plans = _overridden(config.data, plans)
    configuration = plans.configurations[config.data.configuration]
    net = resolve_net(config.net, configuration, channels, labels)
    for axis, (size, stride) in enumerate(zip(configuration.patch_size, net.total_stride, strict=True)):
        wanted = f"divisible by the net's {stride} along axis {axis}"
        check_that(size % stride == 0, "data.patch_size", wanted, configuration.patch_size)
    run = Run(Path(config.output), config, net, plans, labels)
    if run.begun_folds():
        _check_same(run)
    return run


def _write(run: Run) -> Run:
    """As it is read back."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(run.folder / CONFIG, to_json(run.config))
    write_text(run.folder / NET, to_json(run.net))
    save_plans(run.plans, run.folder / PLANS)
    write_json(run.folder / LABELS, run.labels.to_json())
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    versions = installed_versions() | {DEVICES: f"{jax.device_count()} x {devices}"}
    write_json(run.folder / VERSIONS, versions)
    return open_run(run.folder)


def _check_same(here: Run) -> None:
    """Refuses to describe a trained run anew in what its checkpoints and their predictions depend on."""
    now, fold = _description(here), here.config.data.fold
    trained = [n for n in here.trained_folds() if not is_imported(here.checkpoints(n))]

    def identities(folds):
        return [read_saved(here.checkpoints(n)).identity for n in folds]

    if trained and lacking_files(here.folder):
        known = identities(trained)  # which know all but the plans
    else:
        known = [_description(open_run(here.folder))]
        # Those at hand know better: a call that was refused later may have changed what config.json says.
        for identity in identities([n for n in trained if fold in (n, "all")][:1]):
            known[0][SETTINGS] = identity[SETTINGS]
    if here.config.train.allow_changed_settings:
        del now[SETTINGS]
    for before in known:
        shared = before.keys() & now.keys()
        different = "; ".join(differences(*({key: x[key] for key in sorted(shared)} for x in (before, now))))
        only_settings = all(before[key] == now[key] for key in shared - {SETTINGS})
        advice = ", or permit them with train.allow_changed_settings" if only_settings else ""
        wanted = f"of the same net, data and settings as now (or choose another output{advice})"
        check_that(not different, f"the trained run {here.folder}", wanted, different)


def _description(run: Run) -> dict[str, Any]:
    """As JSON gives it back."""
    description = {
        "net": run.net.architecture(),
        "configuration": run.config.data.configuration,
        "plans": dataclasses.asdict(run.plans),
        **run.labels.to_json(),
        SETTINGS: run.config.decisive_settings(),
    }
    return json.loads(json.dumps(description))


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


def resolve_net(options: NetOptions, plan: Configuration, in_channels: int, labels: Labels) -> NetConfig:
    """The net of an experiment: its own fields, and the plans' for those left None.

    Fewer features than the plans have stages make a shallower net of their first stages, which in the
    decoder, whose highest resolution is last, are the last ones.
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
        num_classes=labels.outputs,
        features=options.features or plan.features,
        kernel_sizes=plan.kernel_sizes[:stages],
        strides=plan.strides[:stages],
        blocks_per_stage=options.blocks_per_stage or plan.blocks_per_stage[:stages],
        decoder_blocks_per_stage=options.decoder_blocks_per_stage
        or plan.decoder_blocks_per_stage[1 - stages :],
        deep_supervision=options.deep_supervision,
        dtype=options.dtype,
        remat=options.remat,
        scan_implementation=options.scan_implementation,
    )

"""The configuration of an experiment: frozen dataclasses, validated on construction."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

from jaxmamba3d.checks import (
    check_axes,
    check_choice,
    check_count,
    check_positive,
    check_seed,
    check_sizes,
    check_that,
    check_whole,
)

NetName = Literal["segmamba", "bisegmamba", "segmambaskip", "multisegmamba", "resunet"]
DType = Literal["float32", "bfloat16"]
ScanImplementation = Literal[
    "reference",
    "xla_sequential",
    "xla_associative",
    "pallas_triton",
    "pallas_mosaic_gpu",
    "pallas_mosaic_tpu",
]
Optimizer = Literal["radam", "sgd"]
Schedule = Literal["cosine", "one_cycle", "poly", "constant"]
ScheduleUnit = Literal["epoch", "step"]
NonFinite = Literal["stop", "skip"]

NETS = get_args(NetName)
SCAN_IMPLEMENTATIONS = get_args(ScanImplementation)

Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class NetConfig:
    """One network, complete: what `build_net` needs and what a checkpoint is checked against.

    Args:
        name: segmamba | bisegmamba | segmambaskip | multisegmamba | resunet.
        in_channels: image channels.
        num_classes: output channels K: the classes, background included, or the regions.
        features: channels of each stage, highest resolution first.
        kernel_sizes: convolution kernel of each stage (voxels).
        strides: stride of each stage's first convolution (voxels).
        blocks_per_stage: residual blocks of each encoder stage.
        decoder_blocks_per_stage: residual blocks of each decoder stage, highest resolution LAST
            (nnU-Net's order); one fewer than the encoder's stages.
        deep_supervision: return logits of every decoder stage, highest resolution first.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, norms and the scan stay float32.
        remat: recompute each Mamba block in the backward pass instead of storing its activations.
        scan_implementation: see `selective_scan`; None picks for the backend.
    """

    name: NetName
    in_channels: int
    num_classes: int
    features: tuple[int, ...]
    kernel_sizes: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    blocks_per_stage: tuple[int, ...]
    decoder_blocks_per_stage: tuple[int, ...]
    deep_supervision: bool = True
    dtype: DType = "float32"
    remat: bool = False
    scan_implementation: ScanImplementation | None = None

    def __post_init__(self):
        for field in ("features", "kernel_sizes", "strides", "blocks_per_stage", "decoder_blocks_per_stage"):
            object.__setattr__(self, field, with_tuples(getattr(self, field)))
        check_choice("name", self.name, NETS)
        check_choice("dtype", self.dtype, get_args(DType))
        check_choice("scan_implementation", self.scan_implementation, (None, *SCAN_IMPLEMENTATIONS))
        check_count("in_channels", self.in_channels)
        check_count("num_classes", self.num_classes)
        stages = len(self.features)
        check_that(stages >= 2, "features", "one entry per stage, at least 2", self.features)
        for field, count in (
            ("kernel_sizes", stages),
            ("strides", stages),
            ("blocks_per_stage", stages),
            ("decoder_blocks_per_stage", stages - 1),
        ):
            value = getattr(self, field)
            wanted = f"{count} entries because features has {stages} stages"
            check_that(len(value) == count, field, wanted, f"{len(value)}: {value}")
        for field in ("features", "blocks_per_stage", "decoder_blocks_per_stage"):
            for entry in getattr(self, field):
                check_count(field, entry)
        for field in ("kernel_sizes", "strides"):
            for entry in getattr(self, field):
                check_sizes(field, entry)
        for kernel in self.kernel_sizes:
            check_that(all(n % 2 for n in kernel), "kernel_sizes", "odd sizes", kernel)

    def architecture(self) -> dict[str, Any]:
        """The fields that decide which parameters there are and what they mean; the others may change between
        trainings of the same parameters."""
        free = {"deep_supervision", "dtype", "remat", "scan_implementation"}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}

    @property
    def total_stride(self) -> Triple:
        """Voxels of the input for one voxel of the bottleneck, by axis: spatial sizes must divide by it."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(3))


@dataclasses.dataclass(frozen=True)
class NetOptions:
    """Which network an experiment trains; a field left None is taken from the plans."""

    name: NetName = "segmamba"
    features: tuple[int, ...] | None = None
    blocks_per_stage: tuple[int, ...] | None = None
    decoder_blocks_per_stage: tuple[int, ...] | None = None
    deep_supervision: bool = True
    dtype: DType = "float32"
    remat: bool = False
    scan_implementation: ScanImplementation | None = None

    def __post_init__(self):
        check_choice("net.name", self.name, NETS)
        check_choice("net.dtype", self.dtype, get_args(DType))
        check_choice("net.scan_implementation", self.scan_implementation, (None, *SCAN_IMPLEMENTATIONS))
        for field in ("features", "blocks_per_stage", "decoder_blocks_per_stage"):
            for entry in getattr(self, field) or ():
                check_count(f"net.{field}", entry)
        stages = self.features is None or len(self.features) >= 2
        check_that(stages, "net.features", "one entry per stage, at least 2", self.features)


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """A small made-up dataset, written before training when the dataset folder does not exist yet."""

    cases: int = 16
    shape: Triple = (24, 48, 40)
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)
    seed: int = 0

    def __post_init__(self):
        check_whole("data.phantoms.cases", self.cases)
        check_sizes("data.phantoms.shape", self.shape)
        check_seed("data.phantoms.seed", self.seed)
        check_that(self.cases >= 5, "data.phantoms.cases", "at least 5 (one per fold)", self.cases)
        check_that(min(self.shape) >= 16, "data.phantoms.shape", "at least 16 voxels per axis", self.shape)
        _check_spacing("data.phantoms.spacing", self.spacing)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is and how patches are drawn.

    Args:
        dataset: dataset folder, in the Decathlon's or nnU-Net's raw layout, or BTCV or ACDC as shipped.
        source: where the dataset can be had, for the error if it is missing.
        work: folder of plans and preprocessed cases; None: `work` inside the run folder.
        plans: an nnUNetPlans.json to use instead of planning.
        splits: a splits_final.json to use instead of the 5-fold rule; cases left out are test cases.
        memory_gb: device memory that planning aims at; None: what `work` was planned for, else 8.
        configuration: the plans' configuration.
        fold: which split is validated on; "all": every one in turn, each by a net of its own (not nnU-Net's
            fold of that name, which trains on all cases and validates on none).
        patch_size, batch_size: override the plans'.
        spacing: voxel size in mm, in the order of the patch's axes, overrides the plans'; wider ones make
            smaller volumes.
        foreground_fraction: share of a batch's patches that must hold foreground.
        read_threads: threads that read patches ahead of the device.
        processes: worker processes of checks, planning and preprocessing; None: one for each core.
        phantoms: make this dataset first if the folder is missing.
    """

    dataset: str = ""
    source: str | None = None
    work: str | None = None
    plans: str | None = None
    splits: str | None = None
    memory_gb: float | None = None
    configuration: str = "3d_fullres"
    fold: int | Literal["all"] = 0
    patch_size: Triple | None = None
    batch_size: int | None = None
    spacing: tuple[float, float, float] | None = None
    foreground_fraction: float = 0.33
    read_threads: int = 2
    processes: int | None = None
    phantoms: PhantomConfig | None = None

    def __post_init__(self):
        fits = self.fold == "all" or (type(self.fold) is int and self.fold >= 0)
        check_that(fits, "data.fold", "0 or more, or all", repr(self.fold))
        fraction = self.foreground_fraction
        check_that(0 <= fraction <= 1, "data.foreground_fraction", "a share from 0 to 1", fraction)
        check_count("data.read_threads", self.read_threads)
        if self.batch_size is not None:
            check_count("data.batch_size", self.batch_size)
        if self.patch_size is not None:
            check_sizes("data.patch_size", self.patch_size)
        if self.spacing is not None:
            _check_spacing("data.spacing", self.spacing)
        if self.memory_gb is not None:
            check_positive("data.memory_gb", self.memory_gb)
        if self.processes is not None:
            check_count("data.processes", self.processes)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """An optimizer with coupled weight decay, and a learning-rate schedule: by default the paper's.

    Args:
        optimizer: radam, or sgd with Nesterov's momentum of 0.99 (nnU-Net's).
        learning_rate: the highest learning rate.
        weight_decay: added to the gradient, on all parameters.
        gradient_clip: the gradient's global norm is clipped to this.
        schedule: cosine (rises again after `cosine_period`), one_cycle, poly (nnU-Net's) or constant.
        schedule_unit: the rate changes with each epoch, as published, or with each step, for short runs.
        cosine_period: epochs from the highest to the lowest rate.
        cosine_floor: the lowest rate of the cosine schedule.
        warmup_fraction: share of the training in which one_cycle rises.
        final_div_factor: one_cycle ends at its first rate divided by this.
    """

    optimizer: Optimizer = "radam"
    learning_rate: float = 3e-4
    weight_decay: float = 3e-5
    gradient_clip: float = 12.0
    schedule: Schedule = "cosine"
    schedule_unit: ScheduleUnit = "epoch"
    cosine_period: int = 100
    cosine_floor: float = 5e-6
    warmup_fraction: float = 0.1
    final_div_factor: float = 1e8

    def __post_init__(self):
        check_choice("optim.optimizer", self.optimizer, get_args(Optimizer))
        check_choice("optim.schedule", self.schedule, get_args(Schedule))
        check_choice("optim.schedule_unit", self.schedule_unit, get_args(ScheduleUnit))
        check_positive("optim.learning_rate", self.learning_rate)
        check_positive("optim.gradient_clip", self.gradient_clip)
        check_positive("optim.cosine_period", self.cosine_period)
        for field in ("weight_decay", "cosine_floor"):
            value = getattr(self, field)
            check_that(0 <= value < math.inf, f"optim.{field}", "finite and not negative", value)
        warmup = self.warmup_fraction
        check_that(0 < warmup < 1, "optim.warmup_fraction", "a share between 0 and 1", warmup)
        check_positive("optim.final_div_factor", self.final_div_factor)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to keep.

    Args:
        epochs: epochs to train.
        steps_per_epoch: optimizer steps per epoch (nnU-Net: 250).
        validation_steps: validation batches per epoch (nnU-Net: 50).
        mirror_axes: axes along which patches are mirrored at random, in the order of `data.patch_size`: as a
            rule 0 is Z of the files, across slices, 1 their Y, and 2 their X, which is left and right.
        rotate_and_scale: augment patches by turning and scaling them.
        vary_intensities: augment them by noise, blur, brightness, contrast, low resolution and gamma.
        accumulate: parts that a batch is computed in, one after the other, for devices that cannot hold it at
            once; the result is the batch's.
        shard_parameters: devices that share out parameters and optimizer state; 1: each holds all.
        distributed: several processes train together (SLURM, MPI, Kubernetes, TPU pods; see the README).
        start_from: folder of another run's fold, such as runs/segmamba/fold_0, whose parameters the training
            starts from where names and shapes agree.
        non_finite: what a loss or gradient that is not finite does: "stop" the run, or "skip" the step.
        allow_changed_settings: resume from a checkpoint that was trained with other settings; net, plans,
            labels and cases must still be the same.
        keep_checkpoints: how many latest checkpoints stay on disk, in addition to the best.
        seed: of initialisation, patch order and augmentation.
    """

    epochs: int = 1000
    steps_per_epoch: int = 250
    validation_steps: int = 50
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    rotate_and_scale: bool = True
    vary_intensities: bool = True
    accumulate: int = 1
    shard_parameters: int = 1
    distributed: bool = False
    start_from: str | None = None
    non_finite: NonFinite = "stop"
    allow_changed_settings: bool = False
    keep_checkpoints: int = 1
    seed: int = 0

    def __post_init__(self):
        counts = ("epochs", "steps_per_epoch", "validation_steps", "keep_checkpoints")
        for field in (*counts, "accumulate", "shard_parameters"):
            check_count(f"train.{field}", getattr(self, field))
        check_seed("train.seed", self.seed)
        check_choice("train.non_finite", self.non_finite, get_args(NonFinite))
        check_axes("train.mirror_axes", self.mirror_axes)


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """How whole volumes are predicted.

    Args:
        tile_step: distance of neighbouring windows as a share of the window.
        mirroring: average over mirrored copies along the training's mirror axes.
        window_batch: windows predicted at once.
    """

    tile_step: float = 0.5
    mirroring: bool = True
    window_batch: int = 1

    def __post_init__(self):
        check_that(0 < self.tile_step <= 1, "predict.tile_step", "a share in (0, 1]", self.tile_step)
        check_count("predict.window_batch", self.window_batch)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Everything a run depends on. `output` is the run folder that all results go to."""

    output: str
    data: DataConfig = DataConfig()
    net: NetOptions = NetOptions()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    def __post_init__(self):
        check_that(bool(self.output), "output", "the folder of the run", repr(self.output))

    @property
    def work_folder(self) -> Path:
        """The folder of the plans and the prepared cases."""
        return Path(self.data.work or Path(self.output) / "work")

    def decisive_settings(self) -> dict[str, Any]:
        """The settings, other than net and plans, that decide which parameters a training ends with.

        Its length is one of them only where the learning rate depends on it: others can be prolonged.
        """
        names = ["start_from", "seed", "steps_per_epoch"]
        names += ["mirror_axes", "rotate_and_scale", "vary_intensities"]
        if self.optim.schedule in ("one_cycle", "poly"):
            names.append("epochs")
        return {
            "net": {"deep_supervision": self.net.deep_supervision},
            "optim": dataclasses.asdict(self.optim),
            "train": {name: getattr(self.train, name) for name in names},
            "data": {"foreground_fraction": self.data.foreground_fraction},
        }


def with_tuples(value: Any) -> Any:
    """A value whose lists, at any depth, are tuples."""
    return tuple(with_tuples(entry) for entry in value) if isinstance(value, list | tuple) else value


def _check_spacing(argument: str, spacing: tuple[float, float, float]) -> None:
    valid = len(spacing) == 3 and all(0 < mm < math.inf for mm in spacing)
    check_that(valid, argument, "three lengths > 0 in mm", spacing)

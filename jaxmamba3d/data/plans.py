"""Plans: nnU-Net's decisions about a dataset, in nnU-Net's own file."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.config import Triple
from jaxmamba3d.files import load_json, write_json

READERS = ("SimpleITKIO", "NibabelIO")
"""Which read arrays as they are stored."""


@dataclass(frozen=True)
class Configuration:
    """How volumes are prepared and cut, and which U-Net fits; axes in the order after `transpose_forward`.

    Args:
        spacing: target voxel size (mm).
        patch_size: training and prediction window (voxels).
        batch_size: patches per step.
        median_image_size: median size of the resampled cases (voxels).
        normalization_schemes: one per channel.
        use_mask_for_norm: one per channel: normalise inside the nonzero mask alone.
        batch_dice: the loss's Dice is over the batch instead of each patch.
        features: channels of each stage.
        kernel_sizes, strides: of each stage.
        blocks_per_stage, decoder_blocks_per_stage: convolutions or blocks of each stage.
    """

    spacing: tuple[float, float, float]
    patch_size: Triple
    batch_size: int
    median_image_size: tuple[float, float, float]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    batch_dice: bool
    features: tuple[int, ...]
    kernel_sizes: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    blocks_per_stage: tuple[int, ...]
    decoder_blocks_per_stage: tuple[int, ...]


@dataclass(frozen=True)
class Plans:
    """The plans of a dataset.

    Args:
        dataset_name: as in nnU-Net, such as Dataset004_Hippocampus.
        transpose_forward: array axes of the raw data, in the order that the configurations use.
        transpose_backward: the inverse permutation.
        original_median_spacing, original_median_shape: of the raw cases, transposed.
        configurations: by name, such as 3d_fullres; nnU-Net's 2d ones and cascades are left out.
        intensity_properties: statistics of foreground intensities by channel number.
    """

    dataset_name: str
    transpose_forward: Triple
    transpose_backward: Triple
    original_median_spacing: tuple[float, float, float]
    original_median_shape: Triple
    configurations: dict[str, Configuration]
    intensity_properties: dict[str, dict[str, float]]


def load_plans(path: str | Path) -> Plans:
    """Reads nnU-Net's nnUNetPlans.json, of the older layout or the newer one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no plans file (what is missing is named), or images are read or resampled
            otherwise than by nnU-Net's default.
    """
    return plans_from_json(load_json(path, "nnU-Net's plans"), str(path))


def plans_from_json(content: Any, source: str) -> Plans:
    """What a plans file holds.

    Args:
        content: of the file.
        source: its path, for errors.

    Raises:
        ValueError: see `load_plans`.
    """
    try:
        check_that(isinstance(content, dict), "the content", "an object", type(content).__name__)
        check_choice("image_reader_writer", content.get("image_reader_writer", READERS[0]), READERS)
        resolved = {name: _inherit(content["configurations"], name) for name in content["configurations"]}
        return Plans(
            dataset_name=content["dataset_name"],
            transpose_forward=tuple(content["transpose_forward"]),
            transpose_backward=tuple(content["transpose_backward"]),
            original_median_spacing=tuple(content["original_median_spacing_after_transp"]),
            original_median_shape=tuple(content["original_median_shape_after_transp"]),
            configurations={
                name: _configuration(entry)
                for name, entry in resolved.items()
                if len(entry["patch_size"]) == 3 and not entry.get("previous_stage")
            },
            intensity_properties=content["foreground_intensity_properties_per_channel"],
        )
    except KeyError as error:
        raise ValueError(f"{source} must be nnU-Net's plans, got a file without {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} must be nnU-Net's plans: {error}") from error


def save_plans(plans: Plans, path: str | Path) -> None:
    """Writes plans in nnU-Net's newer layout; `load_plans` gives equal ones back."""
    content = {
        "dataset_name": plans.dataset_name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": plans.original_median_spacing,
        "original_median_shape_after_transp": plans.original_median_shape,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": plans.transpose_forward,
        "transpose_backward": plans.transpose_backward,
        "configurations": {
            name: _configuration_json(name, configuration)
            for name, configuration in plans.configurations.items()
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": plans.intensity_properties,
    }
    write_json(path, content)


def _inherit(configurations: dict[str, Any], name: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    check_that(name not in heirs, "inherits_from", "without a circle", " -> ".join((*heirs, name)))
    entry = configurations[name]
    if "inherits_from" not in entry:
        return entry
    return _inherit(configurations, entry["inherits_from"], (*heirs, name)) | entry


def _resampling() -> dict[str, Any]:
    """nnU-Net's default, as plans have it."""
    resampling = {}
    for target, order, is_seg in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
        resampling[f"resampling_fn_{target}"] = "resample_data_or_seg_to_shape"
        settings = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
        resampling[f"resampling_fn_{target}_kwargs"] = settings
    return resampling


def _configuration(entry: dict[str, Any]) -> Configuration:
    for key, default in _resampling().items():
        wanted = f"nnU-Net's default {default}, as in plans by `jaxmamba3d plan`"
        check_that(entry.get(key, default) == default, key, wanted, entry.get(key))
    if "architecture" in entry:
        net = entry["architecture"]["arch_kwargs"]
        features, kernels, strides = net["features_per_stage"], net["kernel_sizes"], net["strides"]
        # Residual encoders count blocks, plain ones convolutions.
        blocks = net.get("n_conv_per_stage", net.get("n_blocks_per_stage"))
        decoder = net["n_conv_per_stage_decoder"]
    else:
        kernels, strides = entry["conv_kernel_sizes"], entry["pool_op_kernel_sizes"]
        blocks, decoder = entry["n_conv_per_stage_encoder"], entry["n_conv_per_stage_decoder"]
        largest, base = entry["unet_max_num_features"], entry["UNet_base_num_features"]
        features = [min(largest, base * 2**stage) for stage in range(len(strides))]
    return Configuration(
        spacing=tuple(entry["spacing"]),
        patch_size=tuple(entry["patch_size"]),
        batch_size=entry["batch_size"],
        median_image_size=tuple(entry["median_image_size_in_voxels"]),
        normalization_schemes=tuple(entry["normalization_schemes"]),
        use_mask_for_norm=tuple(entry["use_mask_for_norm"]),
        batch_dice=entry["batch_dice"],
        features=tuple(features),
        kernel_sizes=tuple(map(tuple, kernels)),
        strides=tuple(map(tuple, strides)),
        blocks_per_stage=tuple(blocks),
        decoder_blocks_per_stage=tuple(decoder),
    )


def _configuration_json(name: str, configuration: Configuration) -> dict[str, Any]:
    fields = dataclasses.asdict(configuration)
    shared = (
        "batch_size",
        "patch_size",
        "spacing",
        "normalization_schemes",
        "use_mask_for_norm",
        "batch_dice",
    )
    architecture = {
        "n_stages": len(configuration.features),
        "features_per_stage": configuration.features,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": configuration.kernel_sizes,
        "strides": configuration.strides,
        "n_conv_per_stage": configuration.blocks_per_stage,
        "n_conv_per_stage_decoder": configuration.decoder_blocks_per_stage,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "median_image_size_in_voxels": configuration.median_image_size,
        **{key: fields[key] for key in shared},
        **_resampling(),
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def respaced(plans: Plans, configuration: str, spacing: tuple[float, float, float] | None) -> Plans:
    """The plans with another spacing (mm) of a configuration; as they are for None.

    Raises:
        ValueError: they have no such configuration.
    """
    if spacing is None:
        return plans
    check_choice("configuration", configuration, plans.configurations)
    planned = plans.configurations[configuration]
    sizes = zip(planned.median_image_size, planned.spacing, spacing, strict=True)
    median = tuple(size * before / after for size, before, after in sizes)
    changed = dataclasses.replace(planned, spacing=tuple(spacing), median_image_size=median)
    return dataclasses.replace(plans, configurations=plans.configurations | {configuration: changed})

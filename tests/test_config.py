"""Configurations survive JSON and refuse what cannot work."""

import dataclasses
import math

import pytest

from jaxmamba3d.config import (
    DataConfig,
    ExperimentConfig,
    NetConfig,
    NetOptions,
    OptimConfig,
    PhantomConfig,
    PredictConfig,
    TrainConfig,
)
from jaxmamba3d.config_json import from_dict, read_json, to_json

NET = NetConfig("segmamba", 1, 3, (8, 16), ((3, 3, 3),) * 2, ((1, 1, 1), (1, 2, 2)), (2, 2), (2,))


def test_json_round_trip(tmp_path):
    config = ExperimentConfig(
        output="run",
        data=DataConfig("folder", patch_size=(16, 16, 16), phantoms=PhantomConfig(cases=7)),
        net=NetOptions("resunet", features=(4, 8)),
        optim=OptimConfig(schedule="constant"),
        train=TrainConfig(mirror_axes=(0, 2)),
        predict=PredictConfig(tile_step=0.75),
    )
    for value in (config, NET):
        path = tmp_path / "config.json"
        path.write_text(to_json(value))
        assert read_json(type(value), path) == value
    config = dataclasses.replace(config, data=DataConfig("folder", fold="all"))
    path.write_text(to_json(config))
    assert read_json(ExperimentConfig, path).data.fold == "all"


def test_lists_from_json_become_tuples():
    assert from_dict(NetConfig, dataclasses.asdict(NET) | {"features": [8, 16]}) == NET
    assert NET.total_stride == (1, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "unet"}, "name must be one of segmamba, .*got 'unet'"),
        ({"num_classes": 0}, "num_classes must be greater than 0"),
        ({"strides": ((1, 1, 1),)}, "strides must be 2 entries because features has 2 stages, got 1"),
        ({"kernel_sizes": ((3, 3, 3), (2, 3, 3))}, "kernel_sizes must be odd sizes"),
        ({"features": (8, 0)}, "features must be greater than 0, got 0"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"strides": ((1, 1), (2, 2))}, "strides must be three sizes"),
    ],
)
def test_impossible_nets_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NET, **change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(epochs=0), "train.epochs must be greater than 0, got 0"),
        (lambda: TrainConfig(epochs=1e3), "train.epochs must be a whole number, got 1000.0"),
        (lambda: TrainConfig(epochs=True), "train.epochs must be a whole number, got True"),
        (lambda: TrainConfig(epochs="3"), "train.epochs must be a whole number, got '3'"),
        (lambda: DataConfig(patch_size=(8, 8)), r"data.patch_size must be three sizes, .*, got \(8, 8\)"),
        (lambda: DataConfig(patch_size=(8, 8, 0)), "data.patch_size must be greater than 0, got 0"),
        (lambda: TrainConfig(mirror_axes=(3,)), "train.mirror_axes must be different axes out of 0, 1, 2"),
        (lambda: DataConfig(foreground_fraction=1.5), "data.foreground_fraction must be a share"),
        (lambda: DataConfig(spacing=(1, 0, 1)), "data.spacing must be three lengths > 0 in mm"),
        (lambda: TrainConfig(accumulate=0), "train.accumulate must be greater than 0, got 0"),
        (lambda: TrainConfig(non_finite="hope"), "train.non_finite must be one of stop, skip"),
        (lambda: TrainConfig(seed=-1), r"train.seed must be a number from 0 to 2\^32 - 1, got -1"),
        (lambda: OptimConfig(learning_rate=math.inf), "optim.learning_rate must be finite, got inf"),
        (lambda: OptimConfig(cosine_floor=math.nan), "optim.cosine_floor must be finite and not negative"),
        (lambda: OptimConfig(schedule="linear"), "must be one of cosine, one_cycle, poly, constant"),
        (lambda: OptimConfig(optimizer="adam"), "optim.optimizer must be one of radam, sgd"),
        (lambda: PredictConfig(tile_step=0), r"predict.tile_step must be a share in \(0, 1\], got 0"),
        (lambda: TrainConfig(seed=1.5), r"train.seed must be a whole number, got 1.5"),
        (lambda: PhantomConfig(seed=-1), r"data.phantoms.seed must be a number from 0 to 2\^32 - 1, got -1"),
        (lambda: PhantomConfig(cases=5.5), "data.phantoms.cases must be a whole number, got 5.5"),
        (
            lambda: PhantomConfig(shape=(24, 48, 40.0)),
            "data.phantoms.shape must be a whole number",
        ),
        (lambda: PhantomConfig(shape=(24, 48)), "data.phantoms.shape must be three sizes"),
        (lambda: PhantomConfig(spacing=(1.0, math.inf, 1.0)), "data.phantoms.spacing must be three lengths"),
        (
            lambda: NetOptions(features=(4,)),
            r"net.features must be one entry per stage, at least 2, got \(4,\)",
        ),
        (lambda: PhantomConfig(cases=2), "data.phantoms.cases must be at least 5"),
        (lambda: ExperimentConfig(output=""), "output must be the folder of the run"),
        (lambda: DataConfig(patch_size=(8, 8, 8, 8)), "data.patch_size must be three sizes"),
        (lambda: TrainConfig(mirror_axes=(1, 1)), "train.mirror_axes must be different axes out of 0, 1, 2"),
        (lambda: TrainConfig(seed=2**32), r"train.seed must be a number from 0 to 2\^32 - 1, got 4294967296"),
        (lambda: DataConfig(foreground_fraction=-0.1), "data.foreground_fraction must be a share"),
        (lambda: OptimConfig(warmup_fraction=1.0), "optim.warmup_fraction must be a share between 0 and 1"),
        (lambda: PredictConfig(tile_step=1.5), r"predict.tile_step must be a share in \(0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_part_that_is_no_object_is_named():
    with pytest.raises(ValueError, match="TrainConfig must be an object of fields, got 5"):
        from_dict(ExperimentConfig, {"output": "run", "train": 5})


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("train", "rotate_and_scale", "false", "rotate_and_scale must be of type bool, got 'false'"),
        ("data", "dataset", 5, "dataset must be of type str, got 5"),
        ("predict", "tile_step", "0.5", "tile_step must be of type float, got '0.5'"),
        ("predict", "window_batch", 2.0, r"window_batch must be of type int, got 2\.0"),
        ("net", "features", [8, "x"], "an entry of features must be of type int, got 'x'"),
        ("data", "patch_size", 8, "patch_size must be a list, got 8"),
        ("data", "fold", True, "data.fold must be 0 or more, or all, got True"),
    ],
)
def test_values_of_another_type_are_named(part, field, value, message):
    with pytest.raises(ValueError, match=message):
        from_dict(ExperimentConfig, {"output": "run", part: {field: value}})
    assert from_dict(ExperimentConfig, {"output": "run", "predict": {"tile_step": 1}}).predict.tile_step == 1


def test_what_decides_a_training():
    """And what may change while it goes on: its length too, where the learning rate does not follow it."""
    config = ExperimentConfig("run", optim=OptimConfig(schedule="cosine"))
    settings = config.decisive_settings()
    changes = {
        "optim": {"learning_rate": 1e-2, "weight_decay": 1e-2, "gradient_clip": 1.0, "schedule": "one_cycle"}
        | {"optimizer": "sgd"},
        "train": {"steps_per_epoch": 7, "mirror_axes": (1,), "rotate_and_scale": False, "seed": 5}
        | {"vary_intensities": False, "start_from": "runs/other/fold_0"},
        "data": {"foreground_fraction": 0.9},
        "net": {"deep_supervision": False},
    }
    for part, fields in changes.items():
        for name, value in fields.items():
            part_changed = dataclasses.replace(getattr(config, part), **{name: value})
            changed = dataclasses.replace(config, **{part: part_changed})
            assert changed.decisive_settings() != settings, name
    longer = dataclasses.replace(config, train=TrainConfig(epochs=7, validation_steps=3))
    assert longer.decisive_settings() == settings
    for schedule in ("one_cycle", "poly"):
        optim = OptimConfig(schedule=schedule)
        lengths = [dataclasses.replace(c, optim=optim).decisive_settings() for c in (config, longer)]
        assert lengths[0] != lengths[1]


def test_a_training_is_nnunets_unless_its_config_says_otherwise():
    """Or, of the optimizer, the paper's."""
    expected = {
        OptimConfig: {
            "optimizer": "radam",
            "learning_rate": 3e-4,
            "weight_decay": 3e-5,
            "gradient_clip": 12.0,
            "schedule": "cosine",
            "schedule_unit": "epoch",
            "cosine_period": 100,
            "cosine_floor": 5e-6,
            "warmup_fraction": 0.1,
            "final_div_factor": 1e8,
        },
        TrainConfig: {
            "epochs": 1000,
            "steps_per_epoch": 250,
            "validation_steps": 50,
            "mirror_axes": (0, 1, 2),
            "rotate_and_scale": True,
            "vary_intensities": True,
            "accumulate": 1,
            "non_finite": "stop",
            "allow_changed_settings": False,
            "keep_checkpoints": 1,
        },
        PredictConfig: {"tile_step": 0.5, "mirroring": True, "window_batch": 1},
        DataConfig: {"configuration": "3d_fullres", "fold": 0, "foreground_fraction": 0.33},
        NetOptions: {"deep_supervision": True, "dtype": "float32", "remat": False},
    }
    for part, fields in expected.items():
        assert {name: getattr(part(), name) for name in fields} == fields


def test_strides_multiply_and_training_options_are_no_part_of_an_architecture():
    deep = NetConfig(
        "segmamba", 1, 3, (8, 16, 32), ((3, 3, 3),) * 3, ((1, 1, 1), (1, 2, 2), (2, 2, 1)), (1,) * 3, (1, 1)
    )
    assert deep.total_stride == (2, 4, 2)
    options = {
        "deep_supervision": False,
        "dtype": "bfloat16",
        "remat": True,
        "scan_implementation": "reference",
    }
    assert dataclasses.replace(deep, **options).architecture() == deep.architecture()
    assert dataclasses.replace(deep, in_channels=2).architecture() != deep.architecture()


def test_paths_in_a_config_are_written_as_text(tmp_path):
    config = ExperimentConfig("run", data=DataConfig(tmp_path / "data"))
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_json(ExperimentConfig, tmp_path / "config.json").data.dataset == str(tmp_path / "data")


def test_files_of_another_kind_are_named(tmp_path):
    path = tmp_path / "net.json"
    with pytest.raises(FileNotFoundError, match=r"net\.json: no such file; it should hold a NetConfig"):
        read_json(NetConfig, path)
    path.write_text('{"name": "segmamba", "depth": 3}')
    with pytest.raises(ValueError, match=r"net\.json: NetConfig must be only the fields .* also \['depth'\]"):
        read_json(NetConfig, path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"net\.json must hold a NetConfig, got a JSON list"):
        read_json(NetConfig, path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"net\.json must hold a NetConfig as JSON"):
        read_json(NetConfig, path)

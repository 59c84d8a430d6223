"""Weights under the authors' names as a run."""

import dataclasses
import functools
import json
import pickle
import shutil
import zipfile

import nibabel
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from small_runs import params_of

from jaxmamba3d import experiment
from jaxmamba3d.config import NetOptions
from jaxmamba3d.data import find_images, read_description, save_plans
from jaxmamba3d.nets import build_net, read_weights, to_official_weights
from jaxmamba3d.run import import_weights, resolve_net
from jaxmamba3d.training import restore_params


class TestImportedWeights:
    @pytest.fixture
    def imported(self, finished, dataset, tmp_path):
        """The finished run's weights, exported under the authors' names and imported again."""
        run, _ = finished
        net = build_net(run.net, rngs=nnx.Rngs(0))
        template = nnx.state(net, nnx.Param)
        nnx.update(net, restore_params(run.fold_folder(0) / "checkpoints", template))
        weights = to_official_weights(net)
        config = dataclasses.replace(run.config, output=str(tmp_path / "imported"))
        description = read_description(dataset / "dataset.json")
        return run, weights, config, description

    def test_they_predict_the_same(self, imported, dataset, tmp_path):
        run, weights, config, description = imported
        made = import_weights(weights, config, run.plans, description)
        assert made.trained_folds() == (0,)
        for one, other in zip(params_of(run), params_of(made), strict=True):
            np.testing.assert_array_equal(one, other)
        cases = find_images(dataset / "imagesTr", 2)[:1]
        for each in (run, made):
            experiment.predict(each, cases, tmp_path / each.folder.name, folds=[0])
        found = [
            np.asarray(nibabel.load(tmp_path / each.folder.name / "case_0.nii.gz").dataobj)
            for each in (run, made)
        ]
        np.testing.assert_array_equal(*found)

    def test_their_splits_tell_test_cases(self, imported, dataset):
        run, weights, config, description = imported
        splits = [{"train": ["case_0", "case_1"], "val": ["case_3"]}]
        made = import_weights(weights, config, run.plans, description, splits)
        cases = experiment.cases_to_predict(made, dataset)
        assert [case.name for case in cases] == ["case_2", "case_4"]

    def test_they_are_no_training_to_go_on_with(self, imported, dataset, tmp_path):
        run, weights, config, description = imported
        import_weights(weights, config, run.plans, description)
        shutil.copytree(
            run.folder / "work",
            tmp_path / "imported" / "work",
            ignore=shutil.ignore_patterns("3d_fullres"),
        )
        with pytest.raises(ValueError, match=r"latest/0 must be of a training that can be resumed, got"):
            experiment.run_experiment(config)
        assert not (tmp_path / "imported" / "work" / "3d_fullres").exists()

    def test_a_fold_is_not_overwritten(self, imported):
        run, weights, config, description = imported
        import_weights(weights, config, run.plans, description)
        with pytest.raises(FileExistsError, match="has checkpoints already"):
            import_weights(weights, config, run.plans, description)

    def test_weights_of_another_net_leave_nothing_behind(self, imported, tmp_path):
        run, weights, config, description = imported
        weights.pop("encoder.stem.convs.0.conv.bias")
        with pytest.raises(
            ValueError, match=r"got 1 missing \(encoder\.stem\.convs\.0\.conv\.bias\) and no surplus"
        ):
            import_weights(weights, config, run.plans, description)
        assert not (tmp_path / "imported").exists()

    def test_save_file_of_them_is_read(self, imported, tmp_path):
        _, weights, _, _ = imported
        save_file(
            {name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "w.safetensors"
        )
        np.savez(tmp_path / "w.npz", **weights)
        for file in ("w.safetensors", "w.npz"):
            found = read_weights(tmp_path / file)
            assert found.keys() == weights.keys()
            for name, value in weights.items():
                np.testing.assert_array_equal(found[name], value)


class TestCheckpointsOfATrainer:
    """nnU-Net's trainers write beside the weights what they were trained with."""

    @pytest.fixture
    def checkpoint(self, finished, dataset, tmp_path, monkeypatch):
        """Writes such a file, without tensors: how these are read is another test's."""
        run, _ = finished
        plan = dataclasses.replace(run.configuration, features=(2,) * len(run.configuration.features))
        save_plans(
            dataclasses.replace(run.plans, configurations={"3d_fullres": plan}), tmp_path / "plans.json"
        )
        net = build_net(resolve_net(NetOptions("resunet"), plan, 2, run.labels), rngs=nnx.Rngs(0))
        read = "jaxmamba3d.experiment.imported.read_weights"
        monkeypatch.setattr(read, lambda _: to_official_weights(net))
        told = {
            "init_args": {
                "plans": json.loads((tmp_path / "plans.json").read_text()),
                "dataset_json": json.loads((dataset / "dataset.json").read_text()),
                "configuration": "3d_fullres",
                "fold": 3,
            },
            "inference_allowed_mirroring_axes": (0, 2),
        }

        def write(**changed):
            file = tmp_path / "checkpoint_final.pth"
            content = {"network_weights": {}, **told, **changed}
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(content))
            return file

        return write

    def test_need_nothing_else(self, finished, checkpoint, tmp_path):
        made = experiment.import_checkpoint(checkpoint(), tmp_path / "made", net="resunet")
        assert made.trained_folds() == (3,)
        assert made.config.train.mirror_axes == (0, 2)
        assert (made.labels, made.net.features) == (finished[0].labels, made.configuration.features)
        assert set(made.net.features) == {2}

    @pytest.mark.parametrize(
        ("axes", "fold", "expected"), [(None, "all", ((), 0)), ([1], "2", ((1,), 2))], ids=str
    )
    def test_say_where_they_may_be_mirrored(self, checkpoint, tmp_path, axes, fold, expected):
        told = pickle.loads(zipfile.ZipFile(checkpoint()).read("archive/data.pkl"))["init_args"]
        file = checkpoint(inference_allowed_mirroring_axes=axes, init_args=told | {"fold": fold})
        made = experiment.import_checkpoint(file, tmp_path / "made", net="resunet")
        assert (made.config.train.mirror_axes, made.config.data.fold) == expected

    def test_of_other_content_are_named(self, checkpoint, tmp_path):
        with pytest.raises(ValueError, match=r"allowed_mirroring_axes must be axes, or None, got 2"):
            experiment.import_checkpoint(
                checkpoint(inference_allowed_mirroring_axes=2), tmp_path / "made", net="resunet"
            )
        with pytest.raises(ValueError, match=r"plans must be given for"):
            experiment.import_checkpoint(checkpoint(init_args=None), tmp_path / "made", net="resunet")

    def test_give_way_to_what_is_given(self, checkpoint, dataset, tmp_path):
        file = checkpoint(init_args={"plans": {}, "configuration": "2d", "fold": 3})
        made = experiment.import_checkpoint(
            file,
            tmp_path / "made",
            net="resunet",
            plans=tmp_path / "plans.json",
            dataset_json=dataset / "dataset.json",
            configuration="3d_fullres",
            fold=1,
        )
        assert made.trained_folds() == (1,)

    def test_that_do_not_tell_are_named(self, checkpoint, dataset, tmp_path):
        make = functools.partial(experiment.import_checkpoint, output=tmp_path / "made", net="resunet")
        with pytest.raises(ValueError, match=r"plans must be given for .*final\.pth, which does not c"):
            make(checkpoint(init_args={}))
        with pytest.raises(ValueError, match=r"dataset_json must be given for .*final\.pth, which"):
            make(checkpoint(init_args={}), plans=tmp_path / "plans.json")
        with pytest.raises(ValueError, match=r"final\.pth: plans must be nnU-Net's plans, got"):
            make(checkpoint(init_args={"plans": {}}), dataset_json=dataset / "dataset.json")
        assert not (tmp_path / "made").exists()

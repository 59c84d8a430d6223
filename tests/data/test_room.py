"""Disks that are too full for the preprocessed cases, and folders that may not be written."""

import logging
import os
import shutil
from collections import namedtuple

import nibabel
import numpy as np
import pytest
from small_datasets import write_decathlon

from jaxmamba3d.data import plan_workspace, room
from jaxmamba3d.data.preprocessing import preprocess_case

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def workspace(tmp_path):
    return plan_workspace(write_decathlon(tmp_path / "data"), tmp_path / "work", processes=1)


def preprocess_with(free, workspace, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
        return workspace.preprocess(processes=1)


def test_too_little_room_is_said_before_anything_is_written(workspace, monkeypatch, caplog):
    """What the arrays take, here all of the median size, is enough; less is a warning, and less than half an
    error. Cases that are there already do not count."""
    needed = 5 * 12 * 14 * 10 * (4 + 2)
    with pytest.raises(
        ValueError, match=r"3d_fullres must be on a disk with room for about 0\.0 MiB of prepr"
    ):
        preprocess_with(needed // 2 - 1, workspace, monkeypatch)
    assert not list((workspace.folder / "3d_fullres").glob("case_*"))
    with caplog.at_level(logging.WARNING):
        folder = preprocess_with(needed, workspace, monkeypatch)
    assert not caplog.text
    written = sum(path.stat().st_size for name in ("image", "label") for path in folder.glob(f"*/{name}.npy"))
    assert needed <= written <= needed + 10 * 128  # headers
    preprocess_with(0, workspace, monkeypatch)
    shutil.rmtree(folder / "case_2")
    with caplog.at_level(logging.WARNING):
        preprocess_with(needed // 5 - 1, workspace, monkeypatch)
    assert "3d_fullres should be on a disk with room for about 0.0 MiB of preprocessed cases" in caplog.text
    assert "make room, or choose another work folder" in caplog.text
    assert (folder / "case_2" / "image.npy").is_file()


def test_a_folder_may_be_read_only_once_its_cases_are_there(workspace, monkeypatch):
    message = r"^the folder of preprocessed cases must be a folder that can be written, got .*, which may not"
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(ValueError, match=message):
            workspace.preprocess(processes=1)
    folder = workspace.preprocess(processes=1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    workspace.preprocess(processes=1)
    shutil.rmtree(folder / "case_2")
    with pytest.raises(ValueError, match=message):
        workspace.preprocess(processes=1)


def test_an_image_larger_than_the_memory_is_refused_with_its_spacing(tmp_path, workspace):
    """As one whose header tells metres: voxels are made for every millimetre."""
    path = tmp_path / "far.nii.gz"
    nibabel.Nifti1Image(np.ones((90, 90, 90), np.int16), np.diag([99, 99, 99, 1])).to_filename(path)
    with pytest.raises(ValueError, match=r"far\.nii\.gz\) must be small enough .*GiB; .* is 99 x 99 x 99 mm"):
        preprocess_case([path], None, workspace.plans)


def test_an_image_may_take_all_of_the_memory_and_no_more(monkeypatch):
    """Its channels and, beside them, 16 bytes a voxel for what is made of them."""
    needed = 10 * 11 * 12 * (4 * 2 + 16)
    monkeypatch.setattr(room, "memory_bytes", lambda: needed)
    room.check_memory("image", 2, (10, 11, 12), (1.0, 1.0, 1.0))
    monkeypatch.setattr(room, "memory_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="image must be small enough"):
        room.check_memory("image", 2, (10, 11, 12), (1.0, 1.0, 1.0))

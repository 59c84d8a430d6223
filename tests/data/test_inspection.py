"""Every fault of a dataset is found before any work, and all bad cases are named at once."""

import nibabel
import numpy as np
import pytest
from small_datasets import AFFINE, change_json, image_and_label, write_decathlon, write_nifti, write_nnunet

from jaxmamba3d.data.cases import Case
from jaxmamba3d.data.dataset import find_images, read_dataset
from jaxmamba3d.data.inspection import check_dataset, check_images, find_orientations, warn_of_headers


def message_of(folder) -> list[str]:
    """The lines of the error that the check raises."""
    with pytest.raises(ValueError) as caught:
        check_dataset(read_dataset(folder), processes=1)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("write", [write_decathlon, write_nnunet])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_good_dataset_passes(tmp_path, write, channels):
    check_dataset(read_dataset(write(tmp_path / "data", channels=channels)), processes=1)


def test_a_small_difference_of_affines_is_rounding(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    affine = AFFINE.copy()
    affine[0, 3] += 2e-3
    write_nifti(folder / "labelsTr" / "case_0.nii.gz", image_and_label(0)[1], affine)
    check_dataset(read_dataset(folder), processes=1)


def test_all_bad_cases_are_named_at_once(tmp_path):
    folder = write_decathlon(tmp_path / "data", cases=8)
    images, labels = folder / "imagesTr", folder / "labelsTr"
    image, label = image_and_label(0)
    (labels / "case_0.nii.gz").unlink()
    write_nifti(labels / "case_1.nii.gz", label[:-1])
    moved = AFFINE.copy()
    moved[:3, 3] = 3, 0, -2
    write_nifti(labels / "case_2.nii.gz", label, moved)
    write_nifti(labels / "case_3.nii.gz", np.where(label == 2, 7, label).astype(np.uint8))
    spoilt = image[..., 0].copy()
    spoilt[3, 4, 5] = np.nan
    spoilt[3, 4, 6] = np.inf
    write_nifti(images / "case_4.nii.gz", spoilt)
    write_nifti(images / "case_5.nii.gz", np.concatenate([image, image], axis=-1))
    (images / "case_6.nii.gz").write_bytes((images / "case_6.nii.gz").read_bytes()[:500])

    first, *lines = message_of(folder)
    assert first.startswith(f"7 of 8 cases of {folder} are bad")
    found = dict(line.split(": ", 1) for line in lines)
    assert list(found) == [f"case_{n}" for n in range(7)]
    assert found["case_0"].endswith("case_0.nii.gz: no such file")
    assert "case_1.nii.gz has shape [11, 14, 10], its image [12, 14, 10]" in found["case_1"]
    assert "the affines of label and image place voxels up to 3.606 mm apart" in found["case_2"]
    assert "label values [7]" in found["case_3"]
    assert "declared: [0, 1, 2]" in found["case_3"]
    assert "case_4.nii.gz must hold finite float32 values, got 2 NaN or infinite voxels" in found["case_4"]
    assert "must have 1 channels as the dataset declares (MRI), got 2" in found["case_5"]
    assert "case_6.nii.gz must be a whole NIfTI file" in found["case_6"]


def test_channels_that_do_not_lie_on_each_other(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=2)
    images = folder / "imagesTr"
    image, _ = image_and_label(0, 2)
    (images / "case_0_0001.nii.gz").unlink()
    write_nifti(images / "case_1_0001.nii.gz", image[:, :-2, :, 1])
    turned = AFFINE[[1, 0, 2, 3]]
    write_nifti(images / "case_2_0001.nii.gz", image[..., 1], turned)
    write_nifti(images / "case_3_0002.nii.gz", image[..., 0])
    _, *lines = message_of(folder)
    assert [line.split(":")[0] for line in lines] == ["case_0", "case_1", "case_2", "case_3"]
    for line, words in zip(
        lines,
        (
            "case_0_0001.nii.gz: no such file",
            "shape [12, 14, 10], got [12, 12, 10]",
            "affine, got one that differs by up to 27.58 mm",
            "must have 2 channels as the dataset declares (MRI, MRI), got 3",
        ),
        strict=True,
    ):
        assert words in line


def test_images_of_one_value_are_none(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    image, _ = image_and_label(0)
    write_nifti(folder / "imagesTr" / "case_3.nii.gz", np.zeros_like(image[..., 0]))
    _, line = message_of(folder)
    assert line.startswith("case_3: the image ")
    assert line.endswith("case_3.nii.gz holds only the value 0")


def test_a_label_of_turned_axes_is_of_another_shape(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    write_nifti(folder / "labelsTr" / "case_1.nii.gz", image_and_label(1)[1].transpose(1, 0, 2))
    _, line = message_of(folder)
    assert "case_1.nii.gz has shape [14, 12, 10], its image [12, 14, 10]" in line


def test_voxels_to_ignore_are_declared(tmp_path):
    folder = write_nnunet(tmp_path / "data")
    label = image_and_label(0)[1]
    label[0, 0, 0] = 3
    write_nifti(folder / "labelsTr" / "case_0.nii.gz", label)
    _, line = message_of(folder)
    assert "label values [3]" in line
    change_json(folder / "dataset.json", labels={"background": 0, "left": 1, "right": 2, "ignore": 3})
    check_dataset(read_dataset(folder), processes=1)


def test_labels_that_are_no_whole_numbers(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    path = folder / "labelsTr" / "case_2.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
    label[0, 0, 0] = 1.5
    write_nifti(path, label)
    _, line = message_of(folder)
    assert "case_2.nii.gz must hold whole numbers from -32768 to 32767 as labels, got 1.5" in line


def test_worker_processes_find_the_same(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    (folder / "labelsTr" / "case_4.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 cases .*\ncase_4: .*no such file"):
        check_dataset(read_dataset(folder), processes=2)


def test_images_to_predict_are_checked_by_their_headers(tmp_path):
    images = write_nnunet(tmp_path / "data", cases=9, channels=2) / "imagesTr"
    cases = find_images(images, 2)
    check_images(cases, 2)
    image, _ = image_and_label(0, 2)
    first, second = image[..., 0], image[..., 1]

    def spoil(number, array, affine=AFFINE):
        return write_nifti(images / f"case_{number}_0001.nii.gz", array, affine)

    spoil(0, first).unlink()
    spoil(1, first).write_bytes(b"not gzip")
    path = spoil(2, first)
    path.write_bytes(path.read_bytes()[:40])
    spoil(3, first[0])
    spoil(4, image)
    spoil(5, second[:-1])
    moved = AFFINE.copy()
    moved[0, 3] = 4
    spoil(6, second, moved)
    spoil(7, second, np.diag([1, 1.5, 2000, 1]))
    with pytest.raises(ValueError) as caught:
        check_images(cases, 2)
    title, *lines = str(caught.value).splitlines()
    assert title == "8 of 9 cases are bad; fix or remove them:"
    for number, (line, words) in enumerate(
        zip(
            lines,
            (
                "no such file",
                "Not a gzipped file",
                "must be a whole NIfTI file, got 'Compressed file ended",
                "must be 3D, or 4D with the channels last, got shape (14, 10)",
                "must be 3D because each channel has its file, got shape (12, 14, 10, 2)",
                "shape [12, 14, 10], got [11, 14, 10]",
                "affine, got one that differs by up to 4 mm",
                "must have a spacing from 0.001 to 100 mm along each axis, got [1.0, 1.5, 2000.0]",
            ),
            strict=True,
        )
    ):
        assert line.startswith(f"case_{number}: ")
        assert f"case_{number}_0001.nii.gz" in line
        assert words in line


def test_another_number_of_channels_than_the_net_takes(tmp_path):
    cases = find_images(write_decathlon(tmp_path / "data", cases=1, channels=3) / "imagesTr", 2)
    with pytest.raises(ValueError, match=r"case_0: .*case_0\.nii\.gz must be of 2 channels, got 3"):
        check_images(cases, 2)


def test_images_of_several_orientations_are_warned_of(tmp_path, caplog):
    """For the net sees arrays as they are stored."""
    cases = []
    for name, signs in (("a", (1, 1, 1)), ("b", (-1, -1, 1)), ("c", (1, 1, 1))):
        path = write_nifti(tmp_path / f"{name}.nii.gz", np.zeros((4, 4, 4), np.int16), np.diag([*signs, 1.0]))
        cases.append(Case(name, (path,)))
    warn_of_headers(cases[::2])
    check_images(cases, 1)
    check_images(cases, 1, ["LPS", "RAS"])
    assert caplog.text == ""
    assert find_orientations([*cases, Case("d", (tmp_path / "d.nii.gz",))]) == {
        "LPS": ["b"],
        "RAS": ["a", "c"],
    }
    warn_of_headers(cases)
    said = "stored in several orientations, which the net sees: 1 as LPS (such as b), 2 as RAS (such as a)"
    assert said in caplog.text
    caplog.clear()
    check_images(cases, 1, ["LPS"])
    assert "images are stored as LPS, but of these 2 as RAS (such as a): reorient them" in caplog.text

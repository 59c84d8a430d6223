"""NIfTI files: axes, spacing and geometry survive; what is wrong with a file is said in one sentence."""

import errno
import gzip
import os
import re
import tracemalloc

import nibabel
import numpy as np
import pytest

from jaxmamba3d.data import nifti
from jaxmamba3d.data.nifti import read_label, read_volume, upright, write_segmentation

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
VALUES = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)


def rotation(seed: int) -> np.ndarray:
    """A proper rotation, different for each seed."""
    orthogonal, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return orthogonal * np.linalg.det(orthogonal)


def save(path, data=VALUES, affine=None, qform=1, sform=1):
    """Writes a NIfTI of voxels 0.7 x 1.3 x 2.5 mm, unless an affine says otherwise."""
    affine = np.diag([0.7, 1.3, 2.5, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(data, affine)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_axes_are_reversed_and_spacing_is_the_header_s(tmp_path, ending):
    volume = read_volume(save(tmp_path / f"image{ending}"))
    assert volume.array.shape == (1, 6, 5, 4)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array[0], VALUES.T)
    assert volume.spacing == tuple(float(np.float32(size)) for size in (2.5, 1.3, 0.7))
    assert all(type(size) is float for size in volume.spacing)


def test_a_file_a_channel_and_one_file_of_channels_are_the_same(tmp_path):
    channels = np.stack([VALUES, VALUES + 1, 2 * VALUES], -1)
    paths = [save(tmp_path / f"case_{c:04d}.nii.gz", channels[..., c]) for c in range(3)]
    several, one = read_volume(paths), read_volume(save(tmp_path / "case.nii.gz", channels))
    assert several.array.shape == (3, 6, 5, 4)
    assert several.array.flags.c_contiguous
    assert one.array.flags.c_contiguous
    np.testing.assert_array_equal(several.array, one.array)
    np.testing.assert_array_equal(several.array[2], 2 * VALUES.T)
    assert several.spacing == one.spacing
    assert several.geometry["affine"] == one.geometry["affine"]


def test_scaled_values_are_computed_in_double_precision(tmp_path):
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    slope, intercept = np.float32(0.0123), np.float32(-7.3)
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    stored = nibabel.load(tmp_path / "scaled.nii.gz").dataobj.get_unscaled().astype(np.float64)
    expected = (stored * float(slope) + float(intercept)).astype(np.float32)
    np.testing.assert_array_equal(read_volume(tmp_path / "scaled.nii.gz").array[0], expected.T)


def test_little_is_in_memory_beside_the_array(tmp_path, monkeypatch):
    """Of a clinical CT, the file's integers and nibabel's float64 would be three times as much."""
    data = 2 * RNG.integers(-500, 500, (40, 50, 400)).astype(np.int16)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "long.nii.gz")
    monkeypatch.setattr(nifti, "VOXELS_AT_ONCE", 2**12)
    for read in (read_volume, read_label):
        tracemalloc.start()
        try:
            read(tmp_path / "long.nii.gz")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        itemsize = 4 if read is read_volume else 2
        assert peak < 1.4 * itemsize * data.size


def test_a_trailing_axis_of_one_is_no_channel(tmp_path):
    paths = [save(tmp_path / f"{c}.nii", VALUES[..., None] + c) for c in range(2)]
    assert read_volume(paths).array.shape == (2, 6, 5, 4)
    assert read_label(paths[0])[0].shape == (6, 5, 4)


@pytest.mark.parametrize(("front", "first_row"), [(1, 0), (-1, -1)])
def test_pictures_show_the_front_of_the_body_above(tmp_path, front, first_row):
    volume = read_volume(save(tmp_path / "image.nii.gz", affine=np.diag([-0.7, front * 1.3, 2.5, 1.0])))
    shown = upright(volume.array, volume.geometry)
    np.testing.assert_array_equal(shown[..., 0, :], volume.array[..., first_row, :])


@pytest.mark.parametrize(
    ("orientation", "upside_down"),
    [("RAS", False), ("LSA", False), ("ARS", False), ("SLP", False), ("LPS", True), ("RIA", True)],
)
def test_pictures_are_turned_where_the_second_axis_goes_backwards_or_down(orientation, upside_down):
    assert nifti.is_upside_down(orientation) is upside_down


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_labels_of_any_dtype_are_int16(tmp_path, dtype):
    label = RNG.integers(0, 14, SHAPE)
    found, _ = read_label(save(tmp_path / "label.nii.gz", label.astype(dtype)))
    assert found.dtype == np.int16
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, label.T)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("qform", "sform"), [(1, 2), (1, 0), (0, 2), (0, 0)])
def test_a_segmentation_lies_exactly_on_its_image(tmp_path, seed, qform, sform):
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) * RNG.uniform(0.3, 5, 3)
    affine[:3, 3] = RNG.normal(size=3) * 100
    if seed % 2:
        affine[:, 0] *= -1  # a left-handed file
    image = nibabel.load(save(tmp_path / "image.nii.gz", affine=affine, qform=qform, sform=sform))
    segmentation = RNG.integers(0, 256, SHAPE[::-1]).astype(np.uint8)
    geometry = read_volume(tmp_path / "image.nii.gz").geometry
    write_segmentation(tmp_path / "segmentation.nii.gz", segmentation, geometry)

    written = nibabel.load(tmp_path / "segmentation.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), segmentation.T)
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.header.get_zooms() == image.header.get_zooms()
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (qform, sform)
    np.testing.assert_array_equal(written.get_qform(), image.get_qform())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "segmentation.nii.gz"
    geometry = read_volume(save(tmp_path / "image.nii.gz")).geometry
    write_segmentation(path, np.ones(SHAPE[::-1], np.uint8), geometry)

    def full_disk(image, where):
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nibabel, "save", full_disk)
    message = r"segmentation\.nii\.gz could not be written: No space left on device; make room"
    with pytest.raises(OSError, match=message):
        write_segmentation(path, np.zeros(SHAPE[::-1], np.uint8), geometry)
    assert read_label(path)[0].min() == 1


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (np.zeros((4, 5, 6), np.uint8), r"must have shape \[Z, Y, X\] = \[6, 5, 4\], got \[4, 5, 6\]"),
        (np.zeros((6, 5), np.uint8), r"= \[6, 5, 4\], got \[6, 5\]"),
        (np.full((6, 5, 4), -1, np.int16), "from 0 to 255, got -1 to -1"),
        (np.arange(120, 240).reshape(6, 5, 4) + 17, "from 0 to 255, got 137 to 256"),
    ],
)
def test_segmentations_that_a_file_cannot_hold(tmp_path, segmentation, message):
    geometry = read_volume(save(tmp_path / "image.nii.gz")).geometry
    with pytest.raises(ValueError, match=message):
        write_segmentation(tmp_path / "segmentation.nii.gz", segmentation, geometry)
    assert not (tmp_path / "segmentation.nii.gz").exists()


def refused(read, path, *words, error=ValueError):
    """One sentence in one line that names the file and holds the words."""
    with pytest.raises(error) as raised:
        read(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), f"{word} is not in: {message}"


@pytest.mark.parametrize("read", [read_volume, read_label])
class TestDamagedFiles:
    def test_missing(self, tmp_path, read):
        refused(read, tmp_path / "no.nii.gz", "no such file$", error=FileNotFoundError)

    @pytest.mark.parametrize(("there", "wanted"), [("a.nii", "a.nii.gz"), ("a.nii.gz", "a.nii")])
    def test_missing_in_this_form(self, tmp_path, read, there, wanted):
        save(tmp_path / there)
        found = rf"no such file, but {there} \(let dataset\.json"
        refused(read, tmp_path / wanted, found, error=FileNotFoundError)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated_gzip(self, tmp_path, read, share):
        path = save(tmp_path / "cut.nii.gz")
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        refused(read, path, "whole NIfTI file", "ended before the end-of-stream", "copy or convert")

    def test_changed_byte_before_the_checksum(self, tmp_path, read):
        path = save(tmp_path / "changed.nii.gz")
        content = bytearray(path.read_bytes())
        content[-6] ^= 1
        path.write_bytes(content)
        refused(read, path, "CRC check failed")

    def test_truncated_data(self, tmp_path, read):
        path = save(tmp_path / "cut.nii")
        path.write_bytes(path.read_bytes()[:-1])
        refused(read, path, "Expected 240 bytes, got 239", "copy or convert")

    def test_empty(self, tmp_path, read):
        (tmp_path / "empty.nii").write_bytes(b"")
        refused(read, tmp_path / "empty.nii", "got an empty file")

    def test_wrong_magic(self, tmp_path, read):
        content = b"not an image" * 40
        (tmp_path / "text.nii").write_bytes(content)
        refused(read, tmp_path / "text.nii", re.escape(repr(content[344:348])), "magic")

    @pytest.mark.parametrize("broken", [np.nan, 0.0])
    def test_no_position_in_space(self, tmp_path, read, broken):
        image = nibabel.Nifti1Image(VALUES, np.eye(4))
        image.header["srow_x"][:] = broken
        image.header["sform_code"] = 1
        (tmp_path / "lost.nii").write_bytes(bytes(image.header.binaryblock) + bytes(4) + VALUES.tobytes())
        refused(read, tmp_path / "lost.nii", "must have an affine that places voxels in space")

    def test_compressed_under_an_uncompressed_name(self, tmp_path, read):
        (tmp_path / "named.nii").write_bytes(gzip.compress(b"\0" * 1000))
        refused(read, tmp_path / "named.nii", "magic")

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 1, 2)])
    def test_dimensions(self, tmp_path, read, shape):
        path = save(tmp_path / "flat.nii.gz", np.zeros(shape, np.int16), affine=np.eye(4))
        refused(read, path, "must be 3D", re.escape(f"got shape {shape}"))

    @pytest.mark.parametrize("size", [0.0, -1.5, np.nan, np.inf])
    def test_spacing(self, tmp_path, read, size):
        path = save(tmp_path / "spacing.nii")
        content = bytearray(path.read_bytes())
        content[84:88] = np.float32(size).tobytes()  # pixdim[2], the size along y
        path.write_bytes(content)
        refused(read, path, "spacing above 0 mm", rf"got \[0\.69\d+, {size}, 2\.5\]")


def with_header(path, **fields):
    """Sets fields of a saved file's header as they are, past nibabel's checks."""
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


@pytest.mark.parametrize("read", [read_volume, read_label])
class TestDamagedHeaders:
    def test_a_datatype_that_there_is_not(self, tmp_path, read):
        path = with_header(save(tmp_path / "unknown.nii"), datatype=999)
        refused(read, path, "datatype that NIfTI knows, got code 999")

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_a_shape_beyond_all_memory(self, tmp_path, read, ending):
        path = with_header(save(tmp_path / "huge.nii"), dim=[3, 20000, 20000, 20000, 1, 1, 1, 1])
        if ending == ".nii":
            refused(read, path, "whole NIfTI file", "Expected 16000000000000 bytes")
        else:
            compressed = tmp_path / "huge.nii.gz"
            compressed.write_bytes(gzip.compress(path.read_bytes()))
            refused(read, compressed, r"fits into memory, got \[.*20000, 20000, 20000\]", "damaged")

    def test_a_qform_that_is_none(self, tmp_path, read):
        path = with_header(save(tmp_path / "qform.nii"), quatern_b=5.0)
        refused(read, path, "whole NIfTI file", "copy or convert")

    def test_a_qform_that_does_not_count(self, tmp_path, read):
        read(with_header(save(tmp_path / "qform.nii", qform=0), quatern_b=5.0, qform_code=0))

    def test_no_place_of_the_data(self, tmp_path, read):
        refused(read, with_header(save(tmp_path / "offset.nii"), vox_offset=np.nan), "whole NIfTI file")


def test_a_handedness_of_0_is_1(tmp_path):
    """As the standard says of pixdim[0]."""
    one, zero = (
        read_volume(
            with_header(save(tmp_path / f"{qfac}.nii", sform=0), pixdim=[qfac, 1, 1.5, 5, 1, 1, 1, 1])
        )
        for qfac in (1, 0)
    )
    np.testing.assert_array_equal(zero.array, one.array)
    assert zero.geometry == one.geometry


@pytest.mark.parametrize("code", [7, -1])
def test_unknown_codes_of_a_form_are_written_as_a_known_one(tmp_path, code):
    path = with_header(save(tmp_path / "image.nii"), sform_code=code, qform_code=code)
    image = read_volume(path)
    write_segmentation(tmp_path / "segmentation.nii", np.zeros(SHAPE[::-1], np.uint8), image.geometry)
    written = nibabel.load(tmp_path / "segmentation.nii")
    np.testing.assert_array_equal(written.affine, image.geometry["affine"])
    assert int(written.header["sform_code"]) == 2


def test_names_in_capitals(tmp_path):
    path = save(tmp_path / "image.nii.gz").rename(tmp_path / "IMAGE.NII.GZ")
    np.testing.assert_array_equal(read_volume(path).array[0], VALUES.T)


def test_headers_that_contradict_themselves(tmp_path):
    skewed = np.diag([1.0, 1.5, 5.0, 1.0])
    skewed[0, 1] = 0.6

    def found(affine, **fields):
        path = with_header(save(tmp_path / "image.nii", affine=affine), **fields)
        return nifti.contradiction(nifti.read_geometry(path)[0])

    assert found(np.diag([0.7, 0.7, 5, 1])) is None
    wrong = found(np.diag([0.7, 0.7, 5, 1]), pixdim=[1, 1, 1, 1, 0, 0, 0, 0], qform_code=0)
    assert wrong == "the affine has voxels of 0.7 x 0.7 x 5 mm, pixdim of 1 x 1 x 1"
    assert "right angles" in found(skewed, pixdim=[1, 1, np.hypot(1.5, 0.6), 5, 0, 0, 0, 0], qform_code=0)


@pytest.mark.parametrize(("part", "said"), [(0.005, False), (0.02, True)])
def test_a_hundredth_of_a_spacing_or_of_a_right_angle_is_no_contradiction(part, said):
    longer, leaning = np.diag([1.0 + part, 1.0, 1.0, 1.0]), np.eye(4)
    leaning[0, 1] = part
    for affine in (longer, leaning):
        assert (nifti.contradiction({"affine": affine.tolist(), "zooms": [1.0] * 3}) is not None) is said


@pytest.mark.parametrize("read", [read_volume, read_label])
class TestImplausibleSpacing:
    @pytest.mark.parametrize("size", [1e-6, 7e-4, 101, 1e4])
    def test_sizes_that_were_not_meant_in_mm(self, tmp_path, read, size):
        path = with_header(save(tmp_path / "size.nii"), pixdim=[1, 0.7, size, 2.5, 0, 0, 0, 0])
        refused(read, path, r"spacing from 0\.001 to 100 mm", "fix the header's pixdim")

    @pytest.mark.parametrize("size", [1e-3, 100])
    def test_extreme_sizes(self, tmp_path, read, size):
        read(with_header(save(tmp_path / "size.nii"), pixdim=[1, 0.7, size, 2.5, 0, 0, 0, 0]))

    @pytest.mark.parametrize(("code", "unit"), [(1, "meter"), (3, "micron")])
    def test_other_units(self, tmp_path, read, code, unit):
        path = with_header(save(tmp_path / "unit.nii"), xyzt_units=code | 8)
        refused(
            read, path, f"spacing in mm, got {unit}s", "convert the header's pixdim, affine and xyzt_units"
        )

    @pytest.mark.parametrize("code", [0, 7])
    def test_no_unit_is_taken_for_mm(self, tmp_path, read, code):
        read(with_header(save(tmp_path / "unit.nii"), xyzt_units=code))


@pytest.mark.parametrize("read", [read_volume, read_label])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_files_that_cannot_be_read(tmp_path, monkeypatch, read, number):
    path = save(tmp_path / "locked.nii.gz")

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gzip, "open", fail)
    refused(read, path, "a file that can be read", f"got '{os.strerror(number)}'", "check its permissions")


def test_colours_are_refused(tmp_path):
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(read_volume, save(tmp_path / "rgb.nii.gz", colours), "real numbers", "'R'")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, bad):
    data = VALUES.astype(np.float32)
    data[1, 2, 3] = data[0, 0, 0] = bad
    refused(read_volume, save(tmp_path / "bad.nii.gz", data), "finite", "got 2 NaN or infinite voxels")


def test_values_that_overflow_float32(tmp_path):
    data = VALUES.astype(np.float64)
    data[0, 0, 0] = 1e39
    refused(read_volume, save(tmp_path / "large.nii.gz", data), "got 1 NaN or infinite")


@pytest.mark.parametrize("bad", [0.5, np.nan, 40000, -32769])
def test_labels_that_are_none(tmp_path, bad):
    data = np.zeros(SHAPE)
    data[3, 1, 2] = bad
    refused(read_label, save(tmp_path / "label.nii.gz", data), "whole numbers", f"got {bad}")


def test_a_label_of_several_channels(tmp_path):
    path = save(tmp_path / "label.nii.gz", np.zeros((*SHAPE, 2), np.uint8))
    refused(read_label, path, "must be 3D because it holds labels", r"got shape \(4, 5, 6, 2\)")


class TestChannels:
    def test_none(self):
        with pytest.raises(ValueError, match="paths must be one file or several, got none"):
            read_volume([])

    def test_shape(self, tmp_path):
        first, second = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz", VALUES[:-1])
        with pytest.raises(
            ValueError, match=rf"{second} must have {first}'s shape \[4, 5, 6\], got \[3, 5, 6\]"
        ):
            read_volume([first, second])

    def test_position(self, tmp_path):
        affine = np.diag([0.7, 1.3, 2.5, 1.0])
        affine[1, 3] = 0.25
        first, second = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz", affine=affine)
        with pytest.raises(ValueError, match=rf"{second} must have {first}.*, got .* up to 0\.25 mm"):
            read_volume([first, second])

    def test_rounding_of_the_position_is_none(self, tmp_path):
        affine = np.diag([0.7, 1.3, 2.5, 1.0])
        affine[1, 3] = 0.05
        files = [save(tmp_path / "a.nii"), save(tmp_path / "b.nii", affine=affine)]
        assert len(read_volume(files).array) == 2

    def test_a_turn_moves_the_far_corner_the_most(self, tmp_path):
        affine = np.diag([0.7, 1.3, 2.5, 1.0])
        affine[1, 2] = 0.02  # mm for each slice
        first, second = save(tmp_path / "a.nii.gz"), save(tmp_path / "b.nii.gz", affine=affine)
        with pytest.raises(ValueError, match=rf"{second} must have {first}.*, got .* up to 0\.1 mm"):
            read_volume([first, second])

    @pytest.mark.parametrize(("shift", "apart"), [(0.066, False), (0.074, True)])
    def test_a_tenth_of_the_smallest_side_of_a_voxel_is_rounding(self, tmp_path, shift, apart):
        affine = np.diag([0.7, 1.3, 2.5, 1.0])
        affine[2, 3] = shift
        files = [save(tmp_path / "a.nii"), save(tmp_path / "b.nii", affine=affine)]
        geometries = [nifti.read_geometry(path)[0] for path in files]
        assert (nifti.misplacement(*geometries) > 0) is apart

    def test_dimensions(self, tmp_path):
        first = save(tmp_path / "a.nii.gz")
        second = save(tmp_path / "b.nii.gz", np.stack([VALUES] * 3, -1))
        with pytest.raises(ValueError, match=rf"{second} must be 3D .* got shape \(4, 5, 6, 3\)"):
            read_volume([first, second])


def test_a_whole_gzip_file_of_too_few_voxels(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(save(tmp_path / "a.nii").read_bytes()[:-100]))
    refused(read_volume, path, "a whole NIfTI file")


@pytest.mark.parametrize("lost", [1, 100])
def test_the_header_of_a_plain_file_tells_that_it_was_cut_off(tmp_path, lost):
    path = save(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-lost])
    refused(nifti.read_geometry, path, f"Expected 240 bytes, got {240 - lost} bytes")


def test_complex_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold real numbers"):
        read_volume(save(tmp_path / "a.nii", VALUES.astype(np.complex64)))

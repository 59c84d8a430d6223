"""NIfTI files, read and written through nibabel; arrays are [Z, Y, X], the file's axes reversed."""

import contextlib
import gzip
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import xform_codes
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.files import replacing

POSITION_TOLERANCE = 0.1
"""Voxels by which files of a case may place a voxel apart, as headers round differently."""

SPACINGS_MM = (1e-3, 100.0)
"""The smallest and the largest voxel that an image may have: what is beyond was not meant in mm."""

VOXELS_AT_ONCE = 2**21
"""Of a file, in memory in addition to the array that they go into."""

DAMAGES = (
    HeaderDataError,
    ImageFileError,
    WrapStructError,
    ValueError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
)
"""What nibabel and gzip raise of a file that is no whole NIfTI file."""

Geometry = dict[str, Any]
"""JSON-able: affine, qform (None if damaged, its code being 0), qform_code, sform_code, zooms, xyzt_units,
shape [X, Y, Z] of the file."""


@dataclass(frozen=True)
class Volume:
    """An image.

    Args:
        array: [C, Z, Y, X] float32.
        spacing: voxel size (mm) along Z, Y, X: the header's float32 values.
        geometry: what a segmentation needs to lie on the image, see `Geometry`.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    geometry: Geometry


def read_volume(paths: str | Path | Sequence[str | Path]) -> Volume:
    """Reads an image: one 3D file per channel, or one 4D file whose last axis is the channels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, not 3D or 4D, has a spacing not above 0 or values that are not finite,
            or the channels differ in shape or position.
    """
    paths = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    check_that(bool(paths), "paths", "one file or several", "none")
    geometry, channels = read_geometries(paths)
    array = _empty(paths[0], (channels, *geometry["shape"][::-1]), np.float32)
    for path, part in zip(paths, np.split(array, len(paths)), strict=True):
        _read_numbers(path, part)
    return Volume(array, tuple(geometry["zooms"][::-1]), geometry)


def _read_numbers(path: Path, array: np.ndarray) -> None:
    """Fills [C, Z, Y, X] float32, a view, with finite values."""
    bad = 0
    for values, part in _read_slices(path, array):
        with np.errstate(over="ignore"):  # what overflows float32 becomes infinite, and is refused below
            part[...] = values
        if values.dtype.kind == "f":
            bad += part.size - np.count_nonzero(np.isfinite(part))
    if bad:
        raise ValueError(f"{path} must hold finite float32 values, got {bad} NaN or infinite voxels")


def read_label(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Reads a segmentation [Z, Y, X] int16 and its geometry.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, not 3D, or holds values that are no whole numbers of int16.
    """
    path = Path(path)
    geometry, channels = read_geometry(path)
    if channels > 1:
        shape = (*geometry["shape"], channels)
        raise ValueError(f"{path} must be 3D because it holds labels, got shape {shape}")
    labels = _empty(path, tuple(geometry["shape"][::-1]), np.int16)
    for values, part in _read_slices(path, labels):
        with np.errstate(invalid="ignore"):  # NaN and what int16 cannot hold become other numbers
            np.copyto(part, values, casting="unsafe")
        if not np.array_equal(part, values):
            wrong = values[~(part == values)].flat[0]
            raise ValueError(f"{path} must hold whole numbers from -32768 to 32767 as labels, got {wrong}")
    return labels, geometry


def _empty(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:  # the latter beyond what an address can tell
        wanted = "of a shape that fits into memory"
        raise ValueError(f"{path} must be {wanted}, got {list(shape)}; its header may be damaged") from error


def misplacement(found: Geometry, expected: Geometry) -> float:
    """The farthest that two affines place a voxel of the expected shape apart (mm), 0 within tolerance."""
    corners = np.array([[*c, 1] for c in itertools.product(*((0, n - 1) for n in expected["shape"]))])
    shifts = np.linalg.norm(corners @ np.subtract(found["affine"], expected["affine"]).T, axis=1)
    farthest = float(shifts.max())
    return farthest if farthest > POSITION_TOLERANCE * min(expected["zooms"]) else 0.0


def orientation(geometry: Geometry) -> str:
    """Towards which side of the body each array axis of the file goes, such as RAS or LPS."""
    return "".join(map(str, nibabel.aff2axcodes(np.array(geometry["affine"]))))


def upright(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """An array [..., Z, Y, X] of the file with Y to the front of the body, or up, for pictures that draw the
    first row at the bottom."""
    return np.flip(array, -2) if is_upside_down(orientation(geometry)) else array


def is_upside_down(orientation: str) -> bool:
    """Whether such pictures of a file stored like this, such as LPS, stand on their heads."""
    return orientation[1] in "PI"


def contradiction(geometry: Geometry) -> str | None:
    """What an affine says against the spacing, which counts, or against right angles; None if nothing."""
    axes = np.array(geometry["affine"])[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.allclose(lengths, geometry["zooms"], rtol=0.01):
        voxels, zooms = (" x ".join(f"{size:.4g}" for size in x) for x in (lengths, geometry["zooms"]))
        return f"the affine has voxels of {voxels} mm, pixdim of {zooms}"
    directions = axes / lengths
    if not np.allclose(directions.T @ directions, np.eye(3), atol=0.01):
        return "the affine's axes are not at right angles"
    return None


def write_segmentation(path: str | Path, segmentation: np.ndarray, geometry: Geometry) -> None:
    """Writes a segmentation [Z, Y, X] as uint8 in an image's geometry; under a temporary name at first.

    Raises:
        ValueError: the shape is not that of the geometry, or a value is not within 0 to 255.
    """
    path, segmentation = Path(path), np.asarray(segmentation)
    check_shape("segmentation", segmentation, "[Z, Y, X]", tuple(geometry["shape"][::-1]))
    low, high = int(segmentation.min()), int(segmentation.max())
    check_that(low >= 0 and high <= 255, "segmentation", "of values from 0 to 255", f"{low} to {high}")
    data = segmentation.astype(np.uint8).transpose(2, 1, 0)
    image = nibabel.Nifti1Image(data, np.array(geometry["affine"]))
    image.header.set_zooms(geometry["zooms"])
    image.header.set_xyzt_units(*geometry["xyzt_units"])
    for form, affine, code in (
        (image.set_qform, geometry["qform"], geometry["qform_code"]),
        (image.set_sform, geometry["affine"] if geometry["sform_code"] else None, geometry["sform_code"]),
    ):
        form(None if affine is None else np.array(affine), _known_form(code))
    with replacing(path) as unfinished:
        nibabel.save(image, unfinished)


def read_geometries(paths: Sequence[Path]) -> tuple[Geometry, int]:
    """The geometry of an image and its channels, from the headers of its files alone.

    Raises:
        FileNotFoundError, ValueError: see `read_geometry`; or the files differ in shape or position.
    """
    found = [read_geometry(path) for path in paths]
    geometry, channels = found[0]
    for path, (other, count) in zip(paths, found, strict=True):
        if count > 1 and len(paths) > 1:
            shape = (*other["shape"], count)
            raise ValueError(f"{path} must be 3D because each channel has its file, got shape {shape}")
        if other["shape"] != geometry["shape"]:
            raise ValueError(f"{path} must have {paths[0]}'s shape {geometry['shape']}, got {other['shape']}")
        if distance := misplacement(other, geometry):
            raise ValueError(
                f"{path} must have {paths[0]}'s affine, got one that differs by up to {distance:.4g} mm"
            )
    return geometry, channels * len(paths)


def read_geometry(path: str | Path) -> tuple[Geometry, int]:
    """The geometry of a file and its channels (1 of a 3D file), from its header alone.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: its header is damaged, or not of a 3D or 4D image with a position in space.
    """
    path = Path(path)
    with _as_nifti(path) as file:
        header = _header(file, check=False)
        geometry = _geometry(path, header)
        if not path.name.lower().endswith(".gz"):
            _check_size(path, header)
        return geometry, header.get_data_shape()[3] if header["dim"][0] > 3 else 1


@contextlib.contextmanager
def _as_nifti(path: Path) -> Iterator[BinaryIO]:
    """The open file, decompressed; turns what nibabel and gzip raise into one sentence about it.

    A ValueError that names the file is one already.
    """
    try:
        if not path.stat().st_size:
            raise ValueError(f"{path} must be a whole NIfTI file, got an empty file; copy the original again")
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
            yield file
    except DAMAGES as error:
        if str(path) in str(error):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} must be a whole NIfTI file, got {reason!r}; copy or convert the original again"
        ) from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
        found = f", but {other.name} (let dataset.json name files as they are)" if other.is_file() else ""
        raise FileNotFoundError(f"{path}: no such file{found}") from error
    except OSError as error:
        advice = "check its permissions and its disk"
        raise ValueError(
            f"{path} must be a file that can be read, got {error.strerror!r}; {advice}"
        ) from error


def _header(file: BinaryIO, *, check: bool) -> nibabel.Nifti1Header:
    """The header at the start of an open file; a check repairs or refuses what is wrong with it."""
    content = file.read(nibabel.Nifti2Header.sizeof_hdr)
    kind = nibabel.Nifti1Header
    if content[4:8] == b"n+2\0":
        kind = nibabel.Nifti2Header
    elif content[344:348] != b"n+1\0":
        raise ImageFileError(f"{content[344:348]!r} in place of NIfTI's magic")
    header = kind(content[: kind.sizeof_hdr], check=check)
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # as the standard reads it
    return header


def _read_slices(path: Path, array: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A file's values as the header scales them, a few slices at a time, and their place in the array.

    Args:
        path: a file whose `read_geometry` gave the array's shape.
        array: [Z, Y, X] or [C, Z, Y, X], contiguous.

    Yields:
        values: [n, Y, X], of the file's dtype, or float64 where it is scaled, as nibabel computes it.
        part: [n, Y, X], a view of the array.
    """
    slices = array.reshape(-1, *array.shape[-2:])
    step = max(1, VOXELS_AT_ONCE // slices[0].size)
    with _as_nifti(path) as file:
        header = _header(file, check=True)
        dtype, (slope, intercept) = header.get_data_dtype(), header.get_slope_inter()
        file.seek(header.get_data_offset())
        wanted, done = slices.size * dtype.itemsize, 0
        for start in range(0, len(slices), step):
            part = slices[start : start + step]
            stored = np.empty(part.shape, dtype)
            done += file.readinto(stored.reshape(-1).view(np.uint8))
            if done < min(wanted, (start + step) * slices[0].size * dtype.itemsize):
                raise ImageFileError(f"Expected {wanted} bytes, got {done} bytes")
            yield apply_read_scaling(stored, slope, intercept), part
        while file.read(VOXELS_AT_ONCE):
            pass  # gzip's checksum comes last


def _geometry(path: Path, header: nibabel.Nifti1Header) -> Geometry:
    shape = header.get_data_shape()
    if len(shape) not in (3, 4):
        raise ValueError(f"{path} must be 3D, or 4D with the channels last, got shape {shape}")
    if min(shape) < 1:
        raise ValueError(f"{path} must have at least one voxel along each axis, got shape {shape}")
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        wanted = "must hold numbers of a datatype that NIfTI knows"
        raise ValueError(f"{path} {wanted}, got code {int(header['datatype'])}") from error
    if dtype.kind not in "buif":
        raise ValueError(f"{path} must hold real numbers, got {dtype}")
    _check_spacing(path, header)
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"{path} must have an affine that places voxels in space, got {affine.tolist()}")
    return {
        "shape": [int(size) for size in shape[:3]],
        "affine": affine.tolist(),
        "zooms": [float(zoom) for zoom in header.get_zooms()[:3]],
        "qform": _qform(header),
        "qform_code": int(header["qform_code"]),
        "sform_code": int(header["sform_code"]),
        "xyzt_units": list(_units(header)),
    }


def _check_size(path: Path, header: nibabel.Nifti1Header) -> None:
    """Of a file that is not compressed, which tells how much of it there is."""
    wanted = math.prod(map(int, header.get_data_shape())) * header.get_data_dtype().itemsize
    found = path.stat().st_size - header.get_data_offset()
    if found < wanted:
        raise ImageFileError(f"Expected {wanted} bytes, got {found} bytes")


def _qform(header: nibabel.Nifti1Header) -> list[list[float]] | None:
    """None where it is none, and nothing depends on it."""
    try:
        return header.get_qform(coded=False).tolist()
    except ValueError:
        if header["qform_code"]:
            raise
        return None


def _known_form(code: int) -> int:
    """A code of what an affine's space is; one that NIfTI does not know becomes that of any other image's."""
    return code if code in xform_codes.value_set() else xform_codes["aligned"]


def _check_spacing(path: Path, header: nibabel.Nifti1Header) -> None:
    spacing = header["pixdim"][1 : 1 + min(int(header["dim"][0]), 3)].tolist()
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise ValueError(f"{path} must have a spacing above 0 mm along each axis, got {spacing}")
    low, high = SPACINGS_MM
    if min(spacing) < low * (1 - 1e-6) or max(spacing) > high:
        wanted = f"must have a spacing from {low:g} to {high:g} mm along each axis"
        raise ValueError(f"{path} {wanted}, got {spacing}; fix the header's pixdim and affine")
    unit = _units(header)[0]
    if unit not in ("mm", "unknown"):
        wanted = "convert the header's pixdim, affine and xyzt_units"
        raise ValueError(f"{path} must give its spacing in mm, got {unit}s; {wanted}")


def _units(header: nibabel.Nifti1Header) -> tuple[str, str]:
    """Of space and time; codes that NIfTI does not know say as little as none."""
    try:
        return header.get_xyzt_units()
    except KeyError:
        return "unknown", "unknown"

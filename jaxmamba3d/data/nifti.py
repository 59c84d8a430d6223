"""NIfTI files, read and written through nibabel; arrays are [Z, Y, X], the file's axes reversed."""

import contextlib
import gzip
import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.files import replacing

POSITION_TOLERANCE = 0.1
"""Voxels by which files of a case may place a voxel apart, as headers round differently."""

Geometry = dict[str, Any]
"""JSON-able: affine, qform_code, sform_code, zooms, xyzt_units, shape [X, Y, Z] of the file."""


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
    """Reads an image: one 3D file a channel, or one 4D file whose last axis is the channels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, not 3D or 4D, has a spacing not above 0 or values that are not finite,
            or the channels differ in shape or position.
    """
    paths = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    check_that(bool(paths), "paths", "one file or several", "none")
    channels: list[np.ndarray] = []
    geometry: Geometry | None = None
    for path in paths:
        data, found = _read(path)
        if data.ndim == 4 and len(paths) > 1:
            raise ValueError(f"{path} must be 3D because each channel has its file, got shape {data.shape}")
        with np.errstate(over="ignore"):  # what overflows float32 becomes infinite, and is refused below
            data = data.astype(np.float32)
        if not np.isfinite(data).all():
            bad = int(data.size - np.isfinite(data).sum())
            raise ValueError(f"{path} must hold finite float32 values, got {bad} NaN or infinite voxels")
        geometry = geometry or found
        if found["shape"] != geometry["shape"]:
            raise ValueError(f"{path} must have {paths[0]}'s shape {geometry['shape']}, got {found['shape']}")
        if distance := misplacement(found, geometry):
            raise ValueError(
                f"{path} must have {paths[0]}'s affine, got one that differs by up to {distance:.4g} mm"
            )
        channels += [data] if data.ndim == 3 else list(np.moveaxis(data, -1, 0))
    array = np.stack([channel.transpose(2, 1, 0) for channel in channels])
    return Volume(np.ascontiguousarray(array), tuple(geometry["zooms"][::-1]), geometry)


def read_label(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """Reads a segmentation [Z, Y, X] int16 and its geometry.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged, not 3D, or holds values that are no whole numbers of int16.
    """
    path = Path(path)
    data, geometry = _read(path)
    if data.ndim != 3:
        raise ValueError(f"{path} must be 3D because it holds labels, got shape {data.shape}")
    with np.errstate(invalid="ignore"):  # NaN and what int16 cannot hold become other numbers, refused below
        labels = data.astype(np.int16)
    if not np.array_equal(labels, data):
        wrong = data[~(labels == data)].flat[0]
        raise ValueError(f"{path} must hold whole numbers from -32768 to 32767 as labels, got {wrong}")
    return np.ascontiguousarray(labels.transpose(2, 1, 0)), geometry


def misplacement(found: Geometry, expected: Geometry) -> float:
    """The farthest that two affines place a voxel of the expected shape apart (mm), 0 within tolerance."""
    corners = np.array([[*c, 1] for c in itertools.product(*((0, n - 1) for n in expected["shape"]))])
    shifts = np.linalg.norm(corners @ np.subtract(found["affine"], expected["affine"]).T, axis=1)
    farthest = float(shifts.max())
    return farthest if farthest > POSITION_TOLERANCE * min(expected["zooms"]) else 0.0


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
        form(None if affine is None else np.array(affine), int(code))
    with replacing(path) as unfinished:
        nibabel.save(image, unfinished)


def read_geometry(path: str | Path) -> tuple[Geometry, int]:
    """The geometry of a file and its channels (1 of a 3D file), from its header alone.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: its header is damaged, or not of a 3D or 4D image with a position in space.
    """
    path = Path(path)
    with _as_nifti(path):
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as file:
            content = file.read(nibabel.Nifti2Header.sizeof_hdr)
        kind = _kind(content)
        header = kind.header_class(content[: kind.header_class.sizeof_hdr], check=False)
        return _geometry(path, header), header.get_data_shape()[3] if header["dim"][0] > 3 else 1


@contextlib.contextmanager
def _as_nifti(path: Path) -> Iterator[None]:
    """Turns what nibabel and gzip raise into one sentence about the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path} must be a whole NIfTI file, got an empty file; copy the original again")
    try:
        yield
    except (HeaderDataError, ImageFileError, WrapStructError, EOFError, zlib.error, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} must be a whole NIfTI file, got {reason!r}; copy or convert the original again"
        ) from error


def _kind(content: bytes) -> type[nibabel.Nifti1Image]:
    if content[4:8] == b"n+2\0":
        return nibabel.Nifti2Image
    if content[344:348] != b"n+1\0":
        raise ImageFileError(f"{content[344:348]!r} in place of NIfTI's magic")
    return nibabel.Nifti1Image


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Data in the file's axis order, and its geometry."""
    with _as_nifti(path):
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            # All at once, because nibabel stops before the checksum.
            content = gzip.decompress(content)
        kind = _kind(content)
        # nibabel mends a spacing that is not positive; what the file says is seen before.
        geometry = _geometry(path, kind.header_class(content[: kind.header_class.sizeof_hdr], check=False))
        data = np.asarray(kind.from_bytes(content).dataobj)
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.dtype.kind not in "buif":
        raise ValueError(f"{path} must hold real numbers, got {data.dtype}")
    return data, geometry


def _geometry(path: Path, header: nibabel.Nifti1Header) -> Geometry:
    shape = header.get_data_shape()
    if len(shape) not in (3, 4):
        raise ValueError(f"{path} must be 3D, or 4D with the channels last, got shape {shape}")
    if min(shape) < 1:
        raise ValueError(f"{path} must have at least one voxel along each axis, got shape {shape}")
    _check_spacing(path, header)
    affine = header.get_best_affine()
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"{path} must have an affine that places voxels in space, got {affine.tolist()}")
    return {
        "shape": [int(size) for size in shape[:3]],
        "affine": affine.tolist(),
        "zooms": [float(zoom) for zoom in header.get_zooms()[:3]],
        "qform": header.get_qform(coded=False).tolist(),
        "qform_code": int(header["qform_code"]),
        "sform_code": int(header["sform_code"]),
        "xyzt_units": list(header.get_xyzt_units()),
    }


def _check_spacing(path: Path, header: nibabel.Nifti1Header) -> None:
    spacing = header["pixdim"][1 : 1 + min(int(header["dim"][0]), 3)].tolist()
    if not (np.isfinite(spacing).all() and min(spacing) > 0):
        raise ValueError(f"{path} must have a spacing above 0 mm along each axis, got {spacing}")

"""A small made-up dataset that looks like abdominal MRI, in the Decathlon's layout."""

import logging
import shutil
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from jaxmamba3d.config import PhantomConfig
from jaxmamba3d.files import folder_lock, full_disks_named, write_json

logger = logging.getLogger(__name__)

LABELS = {"0": "background", "1": "liver", "2": "kidneys", "3": "lesion"}
AIR, FAT, MUSCLE, LIVER, KIDNEY, LESION, SPINE = 20, 420, 260, 340, 480, 560, 150


def write_phantom_dataset(folder: str | Path, config: PhantomConfig) -> None:
    """Writes volumes of a body with a liver, two kidneys and a lesion in the liver, with their labels.

    Pose, size and shape vary from case to case; a bias field, texture, blur and Rician noise keep intensities
    from telling the organs apart. A case depends on the seed and on its number alone.

    Args:
        folder: made under a temporary name, then renamed. Where another process makes it meanwhile, its
            dataset stays.
        config: number, size and spacing of the volumes [Z, Y, X], and the seed.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: already there; choose another folder for the phantoms")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".writing_{folder.name}")
    with folder_lock(temporary, lambda: logger.info("waiting: another process writes %s", folder)):
        if not folder.exists():
            unfinished = temporary / folder.name
            shutil.rmtree(unfinished, ignore_errors=True)  # what a process that was killed had begun
            with full_disks_named(folder):
                _write(unfinished, config)
            unfinished.replace(folder)
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, config: PhantomConfig) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    entries = []
    affine = np.diag([-config.spacing[2], -config.spacing[1], config.spacing[0], 1.0])
    for number in tqdm(range(config.cases), desc="phantoms", unit="case"):
        image, label = make_phantom(np.random.default_rng((config.seed, number)), config)
        name = f"phantom_{number:03d}.nii.gz"
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), folder / part / name)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "name": "Phantoms",
        "description": "made-up volumes: liver, kidneys, lesion",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": config.cases,
        "numTest": 0,
        "training": entries,
        "test": [],
    }
    write_json(folder / "dataset.json", description)


def make_phantom(rng: np.random.Generator, config: PhantomConfig) -> tuple[np.ndarray, np.ndarray]:
    """One volume: image [Z, Y, X] int16 and label [Z, Y, X] uint8, Z upwards, Y backwards, X to the left."""
    shape = tuple(int(n + rng.integers(-(n // 10), n // 10 + 1)) for n in config.shape)
    millimetres = np.array(config.spacing)
    extent = np.min(config.shape * millimetres)

    def smooth_noise(length, deviation):
        """Random field [Z, Y, X] of mean 0, a correlation length (share of the extent) and a deviation."""
        field = gaussian_filter(rng.standard_normal(shape), length * extent / millimetres, mode="wrap")
        return (field - field.mean()) * (deviation / field.std())

    # Coordinates from -1 to 1 along each axis, bent by a smooth random field: no outline is an ellipse.
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    z, y, x = (axis + smooth_noise(0.22, 0.07) for axis in (z, y, x))
    turn = rng.normal(0, 0.1)
    y, x = np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y

    def distance_from(centre, radii):
        """Squared, [Z, Y, X]: 1 on the surface of a jittered ellipsoid."""
        centre = np.array(centre) + rng.normal(0, 0.03, 3)
        radii = np.array(radii) * rng.uniform(0.85, 1.15, 3)
        axes = zip((z, y, x), centre, radii, strict=True)
        return sum(((axis - c) / r) ** 2 for axis, c, r in axes)

    from_axis = distance_from((0, 0, 0), (2.5, 0.8, 0.9))
    body, inside = from_axis < 1, from_axis < rng.uniform(0.7, 0.85)
    spine = (distance_from((0, 0.5, 0), (2.5, 0.16, 0.14)) < 1) & inside
    right, left = (distance_from((-0.12, 0.32, side), (0.42, 0.2, 0.15)) < 1 for side in (-0.42, 0.42))
    kidneys = (right | left) & inside & ~spine
    liver = (distance_from((0.1, -0.15, -0.38), (0.6, 0.42, 0.36)) < 1) & inside & ~spine & ~kidneys
    seed = np.argwhere(liver)[rng.integers(liver.sum())]
    distance = np.linalg.norm((np.indices(shape).T - seed) * millimetres, axis=-1).T
    lesion = (distance < rng.uniform(0.09, 0.14) * extent) & liver

    image = np.full(shape, float(AIR))
    for region, intensity in (
        (body, FAT),
        (inside, MUSCLE),
        (spine, SPINE),
        (liver, LIVER),
        (kidneys, KIDNEY),
        (lesion, LESION),
    ):
        image[region] = intensity * rng.uniform(0.9, 1.1)
    # A bowel-like texture between the organs, as bright as they are.
    texture = smooth_noise(0.075, 1.0)
    image += np.where(inside & ~(liver | kidneys | spine), 70 * texture, 15 * texture) * body
    image = gaussian_filter(image, 0.6 / millimetres)
    image *= 1 + smooth_noise(0.6, 0.15)
    noise = rng.normal(0, 22, (2, *shape))
    image = np.hypot(image + noise[0], noise[1])

    label = np.zeros(shape, np.uint8)
    for value, region in enumerate((liver, kidneys, lesion), start=1):
        label[region] = value
    return image.astype(np.int16), label

"""A trained run in memory, for images that are arrays already."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.data import Volume, preprocess_volume
from jaxmamba3d.data.export import SegmentationExport
from jaxmamba3d.data.nifti import SPACINGS_MM
from jaxmamba3d.evaluation import apply_postprocessing
from jaxmamba3d.experiment.prediction import folds_to_predict, make_predictor, mirror_axes_of, read_folds
from jaxmamba3d.inference import predict_planes
from jaxmamba3d.run import Run, open_run


class Segmenter:
    """Segments images that are arrays, as `jaxmamba3d predict` segments files.

    The weights are read once, and the net is compiled with the first image: make one and keep it.

    Arrays are [C, Z, Y, X], with the file's last axis first, and stored in the orientation of the training's
    images (`run.orientations()`). Of one file with all channels or with one, read by

        nibabel     image = file.get_fdata().T, and image[None] of a 3D file; file.header.get_zooms()[2::-1]
        SimpleITK   image = GetArrayFromImage(file)[None]; file.GetSpacing()[::-1]
        MONAI       image = array.transpose(0, 3, 2, 1); spacing[::-1]

    and `nibabel.Nifti1Image(segmentation.T, file.affine)` is the result as a file.

    Args:
        run: a trained run, or its folder.
        folds: to average; None: those that are fully trained, or else all.
        checkpoint: latest | best.
        mirroring: average over mirrored copies; None: as the run's config says.
        postprocessing: keep only the largest component of the structures for which this was decided on the
            run's validation cases.

    Raises:
        FileNotFoundError: there is no such run, or no such checkpoint.
        ValueError: the run is not trained, its checkpoint damaged, or no fold named.
    """

    def __init__(
        self,
        run: Run | str | Path,
        *,
        folds: Sequence[int] | None = None,
        checkpoint: str = "latest",
        mirroring: bool | None = None,
        postprocessing: bool = True,
    ):
        self.run = run if isinstance(run, Run) else open_run(run)
        folds = folds_to_predict(self.run) if folds is None else folds
        check_that(len(folds) > 0, "folds", "at least one fold", folds)
        self._predictor = make_predictor(self.run, mirror_axes_of(self.run, mirroring))
        weights = read_folds(self.run, folds, checkpoint)
        self._folds = [self._predictor.place(parameters) for parameters in weights]
        self._decision = self.run.postprocessing() if postprocessing else None

    def __call__(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Segments one image.

        Args:
            image: [C, Z, Y, X], real numbers as they are in the training's files.
            spacing: voxel size (mm) along Z, Y, X.

        Returns:
            The label values [Z, Y, X], uint8.

        Raises:
            ValueError: the image is of other channels, not real or not finite, or the spacing is none.
        """
        channels = self.run.net.in_channels
        given = np.asarray(image)
        check_that(given.dtype.kind in "buif", "image", "of real numbers", given.dtype)
        image = given.astype(np.float32)  # a copy, which preprocessing overwrites
        check_shape("image", image, "[C, Z, Y, X]", (channels, None, None, None))
        check_that(bool(np.isfinite(image).all()), "image", "finite", "NaN or infinite voxels")
        low, high = SPACINGS_MM
        valid = np.shape(spacing) == (3,) and all(low <= length <= high for length in spacing)
        check_that(valid, "spacing", f"three lengths from {low:g} to {high:g} mm, along Z, Y, X", spacing)
        plans, config = self.run.plans, self.run.config
        volume = Volume(image, tuple(map(float, spacing)), geometry={})
        case = preprocess_volume(volume, None, plans, config.data.configuration, name="image")
        export = SegmentationExport(case.properties, plans, config.data.configuration, labels=self.run.labels)
        step = config.predict.tile_step
        for plane in predict_planes(self._predictor, self._folds, case.image, tile_step=step):
            export.add(plane)
        segmentation = export.result()
        return apply_postprocessing(segmentation, self._decision) if self._decision else segmentation

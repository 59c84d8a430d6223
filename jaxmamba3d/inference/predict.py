"""From image files to segmentation files."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from jaxmamba3d.data import Case, Plans, PreprocessedCase, preprocess_case, write_segmentation
from jaxmamba3d.data.cases import ENDINGS
from jaxmamba3d.data.dataset import DESCRIPTION
from jaxmamba3d.data.export import SegmentationExport
from jaxmamba3d.data.nifti import Geometry
from jaxmamba3d.data.probabilities import PROBABILITIES, write_probabilities
from jaxmamba3d.files import write_json
from jaxmamba3d.inference.background import Backlog, ahead
from jaxmamba3d.inference.finished_cases import FinishedCases, check_only_own, digest_of, warn_of_others
from jaxmamba3d.inference.sliding_window import WindowPredictor, make_window_predictor, predict_planes
from jaxmamba3d.labels import Labels

logger = logging.getLogger(__name__)

SEGMENTATION = ENDINGS[0]
EXPORT_BACKLOG = 8
"""Planes that may wait for their export."""


def make_net_predictor(
    net: nnx.Module,
    patch_size: tuple[int, int, int],
    num_classes: int,
    *,
    mirror_axes: Sequence[int] = (0, 1, 2),
    window_batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> WindowPredictor:
    """A window predictor of a net; its variables are the net's `nnx.state(net, nnx.Param)`.

    Args:
        net: [B, X, Y, Z, C] -> logits, or a tuple of them with the highest resolution first.
        patch_size, num_classes, mirror_axes, window_batch, devices: see `make_window_predictor`.
    """
    graphdef = nnx.graphdef(net)

    def full_resolution(params, windows):
        logits = nnx.merge(graphdef, params)(windows)
        return logits[0] if isinstance(logits, tuple) else logits

    return make_window_predictor(
        full_resolution,
        patch_size,
        num_classes,
        mirror_axes=mirror_axes,
        window_batch=window_batch,
        devices=devices,
    )


def predict_cases(
    predictor: WindowPredictor,
    folds: Sequence[Any],
    cases: Sequence[Case],
    plans: Plans,
    output: Path,
    *,
    labels: Labels,
    configuration: str = "3d_fullres",
    tile_step: float = 0.5,
    settings: Mapping[str, Any] | None = None,
    probabilities: bool = False,
    postprocess: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Segments cases and writes each as OUTPUT/NAME.nii.gz in its image's geometry, and dataset.json with
    what their labels mean.

    While the device predicts a case, the next one is read and the planes that are finished are exported, so
    that little more than a window's depth of logits is in memory. Several processes share out the cases.
    Those that an earlier call with the same weights, plans and settings finished are not predicted again.

    Args:
        predictor: see `make_net_predictor`.
        folds: the variables of one or more folds, whose logits are averaged.
        cases: image files.
        plans: of the training data.
        output: folder; made if missing.
        labels: of the training data.
        configuration: of the plans.
        tile_step: distance of neighbouring windows as a share of the window.
        settings: what else predictions depend on, JSON-able, such as the mirror axes of the predictor.
        probabilities: also write OUTPUT/NAME.npz, as nnU-Net does: `probabilities` [K, z, y, x] float32 on
            the image's voxels; all of a case, 4 K bytes a voxel, are in memory at once.
        postprocess: what is done to each segmentation [z, y, x] uint8 before it is written; `settings` must
            tell it apart from others.

    Raises:
        ValueError: a file that no such call made would be overwritten; or, when all others are written, cases
            could not be read, which are named.
    """
    output.mkdir(parents=True, exist_ok=True)
    made_with = {
        "plans": dataclasses.asdict(plans),
        "labels": labels.to_json(),
        "configuration": configuration,
        "patch_size": predictor.patch_size,
        "tile_step": tile_step,
        **(settings or {}),
    }
    endings = [SEGMENTATION, PROBABILITIES] if probabilities else [SEGMENTATION]
    check_only_own(output, cases, endings)
    process = jax.process_index()
    if process == 0:
        warn_of_others(output, cases, SEGMENTATION)
    digest = digest_of(folds, made_with)
    finished = FinishedCases(output, digest, endings, writer=process, writers=jax.process_count())
    finished.begin(cases)
    if process == 0:
        write_json(output / DESCRIPTION, labels.to_json())
    cases = cases[process :: jax.process_count()]
    remaining = finished.remaining(cases)
    if len(remaining) < len(cases):
        logger.info("%d of %d cases are finished in %s", len(cases) - len(remaining), len(cases), output)

    def prepare(case: Case) -> PreprocessedCase | Exception:
        try:
            return preprocess_case(case.images, None, plans, configuration)
        except (ValueError, FileNotFoundError) as error:
            return error

    def write(case: Case, geometry: Geometry, export: SegmentationExport) -> None:
        result = export.result()
        segmentation, shares = result if probabilities else (result, None)
        if probabilities:
            write_probabilities(output / f"{case.name}{PROBABILITIES}", np.moveaxis(shares, -1, 0))
        if postprocess is not None:
            segmentation = postprocess(segmentation)
        write_segmentation(output / f"{case.name}{SEGMENTATION}", segmentation, geometry)
        finished.add(case)

    folds = [predictor.place(variables) for variables in folds]
    bad = []
    with ThreadPoolExecutor(1) as reader, Backlog(EXPORT_BACKLOG) as exporter:
        prepared = ahead(reader, prepare, remaining)
        windows_shown = process == 0 and sys.stderr.isatty()  # too many lines for the log of a batch job
        cases_at_work = zip(remaining, prepared, strict=True)
        hidden = process > 0 or not remaining
        bar = tqdm(cases_at_work, "predict", len(remaining), unit="case", disable=hidden)
        for case, prepared_case in bar:
            if isinstance(prepared_case, Exception):
                logger.warning("left out: %s: %s", case.name, prepared_case)
                bad.append(f"{case.name}: {prepared_case}")
                continue
            image, properties = prepared_case.image, prepared_case.properties
            export = SegmentationExport(
                properties, plans, configuration, labels=labels, return_probabilities=probabilities
            )
            for plane in predict_planes(predictor, folds, image, tile_step=tile_step, progress=windows_shown):
                exporter.submit(export.add, plane)
            exporter.submit(write, case, properties["geometry"], export)
    if bad:
        share = " of this process" if jax.process_count() > 1 else ""
        what = f"{len(bad)} of {len(cases)} cases{share} are bad and were left out; fix or remove them"
        raise ValueError(f"{what}:\n" + "\n".join(bad))

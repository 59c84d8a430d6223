"""`jaxmamba3d bench pipeline`: how fast training patches are read and augmented, with the data at hand."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxmamba3d.augment import AugmentationPlan, augment
from jaxmamba3d.augment.gallery import effects_alone
from jaxmamba3d.checks import check_choice, check_count, check_positive
from jaxmamba3d.config import DataConfig
from jaxmamba3d.data import Workspace
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.data.plans import Configuration
from jaxmamba3d.files import write_json, write_text
from jaxmamba3d.ops.backend import batch_axes
from jaxmamba3d.training.augmentation_figure import augmentation_figure
from jaxmamba3d.training.epoch import CASE
from jaxmamba3d.training.mesh import make_mesh, shard_batch
from jaxmamba3d.wording import counted, markdown_table, sizes

MB = 1e6
FOREGROUND_BATCHES = 20
"""Batches that are searched for a patch with foreground to draw."""
FIGURE_COLUMNS = 7


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One row.

    Args:
        what: loading, augmentation, or end to end.
        batches: taken in each repeat.
        seconds: of each repeat.
        patches: of all repeats.
        patches_per_second, spread: median over the repeats, and distance of the quartiles.
        mb_per_second: bytes of the patches before augmentation, image and label, by that median, in 10^6.
    """

    what: str
    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    patches: int
    patches_per_second: float
    spread: float
    mb_per_second: float


def bench_pipeline(
    workspace: Workspace,
    output: Path,
    *,
    configuration: str = "3d_fullres",
    patch_size: tuple[int, int, int] | None = None,
    batch_size: int | None = None,
    threads: int = DataConfig.read_threads,
    seconds: float = 5.0,
    repeats: int = 5,
) -> list[Measurement]:
    """Measures the input of training on fold 0; writes pipeline.md, pipeline.json and augmentation.png.

    Three rows: loading alone; augmentation alone, of one batch that is on the devices; and both as training
    has them, a batch being augmented while the next ones are read.

    Args:
        workspace: planned and preprocessed.
        output: folder; made if missing.
        configuration: of the plans.
        patch_size: voxels (X, Y, Z) that the net sees; None: the plans'.
        batch_size: patches; None: the plans'.
        threads: that read ahead.
        seconds: of a repeat.
        repeats: of each measurement, of which the median is taken.

    Raises:
        ValueError: a size or count below 1, or no such configuration.
        FileNotFoundError: the cases are not preprocessed.
    """
    check_choice("configuration", configuration, workspace.plans.configurations)
    check_positive("seconds", seconds)
    for name, value in {"batch_size": batch_size, "threads": threads, "repeats": repeats}.items():
        if value is not None:
            check_count(name, value)
    plan = workspace.plans.configurations[configuration]
    patch_size, batch_size = patch_size or plan.patch_size, batch_size or plan.batch_size
    augmentation = AugmentationPlan.for_patches(patch_size, plan.use_mask_for_norm)
    mesh = make_mesh(batch_size)
    stream = training_batches(
        workspace.cases_folder(configuration),
        workspace.split(0)["train"],
        patch_size=augmentation.initial_patch_size,
        final_patch_size=augmentation.patch_size,
        batch_size=batch_size,
        foreground_fraction=DataConfig.foreground_fraction,
        threads=threads,
    )

    def load() -> dict[str, np.ndarray]:
        return {name: array for name, array in next(stream).items() if name != CASE}

    @jax.jit
    def augmented(step, batch):
        key = jax.random.fold_in(jax.random.key(0), step)
        return augment(key, batch["image"], batch["label"], augmentation, batch_axes=batch_axes())

    steps = iter(range(2**31))
    with jax.set_mesh(mesh):
        shown = _with_foreground(load)
        present = shard_batch(mesh, shown)
        jax.block_until_ready(augmented(next(steps), present))
        calls = {
            "loading": load,
            "augmentation": lambda: augmented(next(steps), present),
            "end to end": lambda: augmented(next(steps), shard_batch(mesh, load())),
        }
        size = sum(array.nbytes for array in shown.values()) / batch_size / MB
        rows = []
        with tqdm(total=len(calls) * repeats, desc="pipeline", unit="repeat") as bar:
            for what, call in calls.items():
                for _ in range(2 * threads + 1):  # what was read ahead while nobody waited does not count
                    jax.block_until_ready(call())
                rows.append(_measure(what, call, batch_size, size, seconds, repeats, bar.update))
    output.mkdir(parents=True, exist_ok=True)
    setting = {
        "device": f"{mesh.size} x {jax.devices()[0].device_kind}, jax {jax.__version__}",
        "configuration": configuration,
        "patch_size": augmentation.patch_size,
        "initial_patch_size": augmentation.initial_patch_size,
        "channels": shown["image"].shape[-1],
        "batch_size": batch_size,
        "threads": threads,
    }
    write_json(output / "pipeline.json", setting | {"rows": [dataclasses.asdict(row) for row in rows]})
    write_text(output / "pipeline.md", _markdown(setting, rows))
    _draw(shown, augmentation, plan, output / "augmentation.png")
    return rows


def _measure(
    what: str,
    call: Callable[[], Any],
    batch_size: int,
    size: float,
    seconds: float,
    repeats: int,
    done: Callable[[], Any],
) -> Measurement:
    """Times as many batches as fit into each repeat, in a row; size: of a patch in MB."""
    batches, times = [], []
    for _ in range(repeats):
        count, pending = 0, None
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            # One step behind, as training waits for the device.
            pending, _ = call(), jax.block_until_ready(pending)
            count += 1
        jax.block_until_ready(pending)
        batches.append(count)
        times.append(time.perf_counter() - started)
        done()
    low, median, high = np.percentile(np.array(batches) * batch_size / np.array(times), (25, 50, 75))
    return Measurement(
        what=what,
        batches=tuple(batches),
        seconds=tuple(times),
        patches=sum(batches) * batch_size,
        patches_per_second=float(median),
        spread=float(high - low),
        mb_per_second=float(median) * size,
    )


def _with_foreground(load: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The first batch whose last patch has foreground; if none of the first ones has, the first."""
    batches = (load() for _ in range(FOREGROUND_BATCHES))
    first = next(batches)
    return next((batch for batch in (first, *batches) if (batch["label"][-1] > 0).any()), first)


def _markdown(setting: dict[str, Any], rows: list[Measurement]) -> str:
    patch, initial = sizes(setting["patch_size"]), sizes(setting["initial_patch_size"])
    columns = ("what", "patches/s", "± patches/s", "MB/s", "patches", "repeats")
    what = (
        f"{setting['configuration']}: patches of {patch} voxels, cut as {initial}, of "
        f"{counted(setting['channels'], 'channel')}; {setting['batch_size']} a batch; "
        f"{counted(setting['threads'], 'thread')} reading."
    )

    def cells_of(row):
        cells = [row.what, f"{row.patches_per_second:.1f}", f"{row.spread:.1f}", f"{row.mb_per_second:.0f}"]
        return [*cells, row.patches, len(row.seconds)]

    table = markdown_table(columns, map(cells_of, rows))
    return f"# Training input on {setting['device']}\n\n{what}\n\n{table}"


def _draw(batch: dict[str, np.ndarray], plan: AugmentationPlan, planned: Configuration, path: Path) -> None:
    patches = effects_alone(batch["image"][-1], batch["label"][-1], plan)
    augmentation_figure(patches, path, spacing=planned.spacing, columns=FIGURE_COLUMNS)

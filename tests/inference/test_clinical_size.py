"""What the host needs for a CT of clinical size, from its file to the segmentation's."""

import resource
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

SHAPE = (512, 512, 600)
LIMIT_GB = 8
PROGRAM = """
import sys
from pathlib import Path
import jax.numpy as jnp
from jaxmamba3d.data import Case, load_plans
from jaxmamba3d.inference import make_window_predictor, predict_cases
from jaxmamba3d.labels import Labels

image, plans, output = map(Path, sys.argv[1:])
organs = Labels({"background": (0,)} | {f"organ {k}": (k,) for k in range(1, 14)})
predictor = make_window_predictor(lambda weights, x: x * weights, (128, 128, 128), 14, mirror_axes=())
weights = jnp.linspace(-1, 1, 14)
predict_cases(predictor, [weights], [Case("ct", (image,))], load_plans(plans), output, labels=organs)
"""


@pytest.mark.slow
def test_a_large_ct_is_predicted_in_little_memory(tmp_path):
    """13 organs, windows of 128^3, a net of one multiplication: the memory is that of the way around it."""
    rng = np.random.default_rng(0)
    ct = np.repeat(rng.integers(-1000, 1000, (1, 1, SHAPE[2]), np.int16), SHAPE[0], 0).repeat(SHAPE[1], 1)
    nibabel.save(nibabel.Nifti1Image(ct, np.diag([0.94, 0.94, 1.25, 1])), tmp_path / "ct.nii.gz")
    del ct
    plans = Path(__file__).parents[1] / "golden" / "nnunet" / "ctiso" / "nnUNetPlans.json"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "ct.nii.gz", plans, tmp_path / "out"], check=True
    )
    segmentation = nibabel.load(tmp_path / "out" / "ct.nii.gz")
    assert segmentation.shape == SHAPE
    assert len(np.unique(np.asarray(segmentation.dataobj))) == 2  # the first or the last class, by the sign
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    sys.stdout.write(f"peak of host memory: {peak_gb:.1f} GiB\n")
    assert peak_gb < LIMIT_GB

"""The notebooks run from the first cell to the last, and are kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from real_data import ROOT

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# A run of seconds: the notebook's own settings take minutes.
SHORT = """
output = {output!r}
options = (
    "--data.dataset {output}/phantoms --data.phantoms.cases 5 --data.patch-size 16 16 16 --net.features 4 8 "
    "--net.blocks-per-stage 1 1 --net.decoder-blocks-per-stage 1 --train.epochs 1 --train.steps-per-epoch 2 "
    "--train.validation-steps 1 --optim.schedule constant"
)
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_outputs_are_stripped(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.filterwarnings("ignore")  # nbclient's and the kernel's own
def test_quickstart_runs(tmp_path):
    notebook = nbformat.read(ROOT / "colab" / "quickstart.ipynb", as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source = SHORT.format(output=str(tmp_path / "run"))
    (content := tmp_path / "content").mkdir()
    (content / "clone").symlink_to(ROOT)  # as in Colab, where notebooks run beside the clone
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(content)}}).execute()
    shown = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    assert sum("image/png" in data for data in shown) == 2
    assert any("Dice" in data.get("text/markdown", "") for data in shown)
    assert shown[-1]["text/plain"] == "(1, 8, 16, 16, 8)"
    assert (Path(tmp_path) / "run" / "fold_0" / "scores" / "summary.json").is_file()

"""The paper's cardiac MRI: ACDC, with the authors' plans, splits and settings.

python train.py configs/acdc.py --data.dataset PATH/TO/ACDC
jaxmamba3d predict runs/acdc --input PATH/TO/ACDC --output test
jaxmamba3d evaluate test PATH/TO/ACDC --protocol acdc

The folder that holds ACDC's `training` is read as it is: end-diastole and end-systole of its 100 patients. Of
these 200 volumes 160 are in the authors' 5 folds; the other 40 are their test cases, and `predict` takes
those alone. `--input PATH/TO/ACDC/testing` predicts the challenge's own test patients.

Settings: see brain_tumour.py. Other networks as there: configs/acdc.py:segmamba and so on. Not trained at
full size yet: no time and no score to show (acdc_small.py has them). A patch is 14x256x224 voxels, 2.6 times
fewer than there: 16 GiB should hold two.
"""

from dataclasses import replace

import brain_tumour

from jaxmamba3d.config import ExperimentConfig


def get_config(net: str = brain_tumour.MULTISEGMAMBA) -> ExperimentConfig:
    config = brain_tumour.get_config()
    data = replace(
        config.data,
        dataset="ACDC",
        source="https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html",
        **brain_tumour.authors_files("Dataset027_ACDC"),
    )
    return brain_tumour.published(replace(config, output="runs/acdc", data=data), net)

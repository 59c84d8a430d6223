"""The paper's abdominal CT: BTCV from Synapse, with the authors' plans, splits and settings.

python train.py configs/synapse.py --data.dataset PATH/TO/RawData
jaxmamba3d predict runs/synapse --input PATH/TO/RawData --output test
jaxmamba3d evaluate test PATH/TO/RawData --protocol synapse8

The folder that RawData.zip unpacks to is read as it is. Of its 30 cases with labels 18 are in the authors'
5 folds; the other 12, img0029 to img0040, are their test cases, and `predict` takes those alone; many papers
test on another 12. All 13 organs are trained; the protocol synapse8 scores 8 of them, synapse13 all.

Settings: see brain_tumour.py. Other networks as there: configs/synapse.py:segmamba and so on. Not trained at
full size yet: no time and no score to show. A patch is 48x192x192 voxels, a sixth fewer than there; the
hardware is the same.
"""

from dataclasses import replace

import brain_tumour

from jaxmamba3d.config import ExperimentConfig


def get_config(net: str = brain_tumour.MULTISEGMAMBA) -> ExperimentConfig:
    config = brain_tumour.get_config()
    data = replace(
        config.data,
        dataset="RawData",
        source="https://www.synapse.org/#!Synapse:syn3193805 (BTCV, Abdomen, RawData.zip)",
        **brain_tumour.authors_files("Dataset090_SynapseAbdomen"),
    )
    return brain_tumour.published(replace(config, output="runs/synapse", data=data), net)

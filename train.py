"""Train a network: python train.py configs/quickstart.py [--optim.learning-rate 1e-3 ...]

A config names everything a run depends on; `--help` after it lists the fields. The phases are in
`jaxmamba3d/experiment/`: prepare the data, train folds, predict and score their validation cases. Prepared
data and finished epochs are kept, so the same command resumes a run that was stopped.
"""

from jaxmamba3d.cli import train
from jaxmamba3d.command import run_command

if __name__ == "__main__":
    run_command(train)

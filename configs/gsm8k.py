"""GSM8K: Gemma-2B supervises Mistral-7B-v0.1 (paper section 4; all settings of the method are those of `base`).

Command:   python -m ilr_jax.main --config=configs/gsm8k.py --config.method=ilr --workdir=runs/gsm8k
           (local data: --config.task.path=FOLDER written by datasets.save_to_disk, with splits train and test)
Hardware:  one accelerator of 80 GB; the evaluator's training takes most: 5 times 2.5 billion float32 numbers, 50 GB, activations apart
Hours:     not measured on an accelerator by this project
Expected:  paper, figure 3: test accuracy rises over SFT by ILR with unreliable feedback, and does not by DPO
"""

from configs import base


def get_config():
    """The base config; activations are computed again in the backward pass, so that it fits one device."""
    config = base.get_config()
    config.compute.remat = "full"
    return config

"""GSM8K: Gemma-2B supervises Mistral-7B-v0.1 (paper section 4; all settings of the method are those of `base`).

Command:   python -m ilr_jax.main --config=configs/gsm8k.py --config.method=ilr --workdir=runs/gsm8k
           (local data: --config.task.path=FOLDER written by datasets.save_to_disk, with splits train and test)
Hardware:  one accelerator of 80 GB or more; by estimate 70 to 90: the evaluator's training state, beside both base models
Hours:     not measured on an accelerator by this project
Expected:  paper, figure 3: test accuracy rises over SFT by ILR with unreliable feedback, and does not by DPO
"""

from configs import base


def get_config():
    """The base config; activations are computed again in the backward pass, so that it fits one device."""
    config = base.get_config()
    config.compute.remat = "full"
    return config

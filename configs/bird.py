"""BIRD, text to SQL: Gemma-2B supervises Llama-3-70B (paper section 4), graded by execution.

Command:   ILR_BIRD_PATH=DATABASES python -m ilr_jax.main --config=configs/bird.py --config.task.path=FOLDER --workdir=runs/bird
           (FOLDER: BIRD's own, with train.json and dev.json, or one that datasets.save_to_disk wrote, with columns question, answer,
           db_schema and db_name; DATABASES: where NAME/NAME.sqlite are, needless if FOLDER holds them)
Hardware:  devices of one machine that together hold 70 billion parameters in bfloat16, 140 GB, and what trains (docs/scale.md); untried. On
           one of 80 GB: --config.strong.model=meta-llama/Meta-Llama-3-8B --config.strong.optimizer=adamw
Hours:     not measured by this project
Expected:  paper, figure 3: test accuracy rises over SFT by ILR with unreliable feedback, and does not by DPO. Both graders are reported
"""

from configs import base


def get_config():
    """The base config with BIRD's models and longer prompts; activations are computed again in the backward pass."""
    config = base.get_config()
    config.task.name = "bird"
    config.strong.model = "meta-llama/Meta-Llama-3-70B"
    config.strong.optimizer = "adafactor"
    config.sft.max_length = (
        2048  # a saved prompt of BIRD's dev set has up to 2,500 characters; CREATE statements of large schemas take more
    )
    config.compute.remat = "full"
    return config

"""GSM8K at scale: Mistral-7B-v0.1 supervises Llama-3-70B, and is the evaluator too (paper section 4, scale-up).

Command:   python -m ilr_jax.main --config=configs/gsm8k_70b.py --config.method=ilr --workdir=runs/gsm8k-70b
Hardware:  several accelerators: the 70B base alone takes 140 GB in bfloat16, and Mistral-7B's training as evaluator, all weights and
           AdamW in float32, about 115
Hours:     not measured by this project
Expected:  paper, scale-up experiments: as with the smaller models, ILR ends above SFT and DPO does not
"""

from configs import gsm8k


def get_config():
    """GSM8K's settings with the larger pair; Adafactor for the 70B model, whose DPO keeps RMSprop, as in the authors' scripts."""
    config = gsm8k.get_config()
    config.weak.model = config.evaluator.model = "mistralai/Mistral-7B-v0.1"
    config.weak.learning_rate = 1e-4
    config.strong.model = "meta-llama/Meta-Llama-3-70B"
    config.strong.optimizer = "adafactor"
    return config

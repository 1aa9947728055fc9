"""SaferPaca: Gemma-2B supervises Mistral-7B-v0.1 on general and safety instructions (paper section 4, settings of its appendix).

Command:   python -m ilr_jax.main --config=configs/saferpaca.py --config.method=ilr --config.task.path=FOLDER --workdir=runs/saferpaca
           (FOLDER: a DatasetDict written by save_to_disk, splits train and test, columns question, answer, category)
           Test answers are measured by an LLM judge, docs/judges.md: OPENAI_API_KEY, or --config.judge.base_url=http://localhost:8000/v1
           --config.judge.key_name= --config.judge.model=NAME of your own server, or --config.judge.kind=evaluator without any
Hardware:  one accelerator of 80 GB, as configs/gsm8k.py; and an endpoint that judges
Hours:     not measured on an accelerator by this project
Expected:  paper: the win rate rises over SFT by ILR with unreliable feedback, and does not by DPO. The judge is asked twice per test
           answer of a model: 578 questions, a supervisor and seven rounds of one method make about 9,200 requests
"""

from configs import base


def get_config():
    """The base config with more epochs, longer answers, and labels and proposals sampled at temperature 1."""
    config = base.get_config()
    config.task.name = "saferpaca"
    config.weak.epochs = config.strong.epochs = config.dpo.epochs = 4
    config.sft.max_length = 1024  # twice the base's, as the answers may be
    config.decoding.labels = config.decoding.proposals = "sample"
    config.decoding.temperature = 1.0
    config.decoding.max_new_tokens = 512
    config.dpo.temperature = 1.0
    config.compute.remat = "full"  # activations are computed again in the backward pass, so that it fits one device
    return config

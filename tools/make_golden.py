"""Make tests/models/golden/*.npz: logits that transformers computes, so that parity is tested where torch is missing.

    python tools/make_golden.py

Needs the extra `torch`. The weights are not stored: numpy makes them again from the seed (tests/models/tiny_models.py). The files in the
repository were made with transformers 5.24.0 and torch 2.13.0 on a CPU, eager attention, float32.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HOME = Path(__file__).parent.parent / "tests" / "models"
sys.path.insert(0, str(HOME))

import tiny_models as tiny  # noqa: E402  # pyright: ignore[reportMissingImports]


def main() -> None:
    (HOME / "golden").mkdir(exist_ok=True)
    rows = tiny.rows()
    tokens, positions, segments = (torch.tensor(x, dtype=torch.long) for x in rows)
    for name, fields in tiny.CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            tiny.write(Path(folder), fields, tiny.weights(fields))
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            logits = model(input_ids=tokens, position_ids=positions, attention_mask=segments).logits.numpy()
        logits = np.where(rows.segments[..., None] > 0, logits, 0)
        arrays = rows._asdict() | {"logits": logits, "seed": np.array(tiny.SEED), "config": np.array(json.dumps(fields))}
        np.savez_compressed(HOME / "golden" / f"{name}.npz", **arrays)
        print(f"{name}: logits of standard deviation {logits[rows.segments > 0].std():.3f}")


if __name__ == "__main__":
    main()

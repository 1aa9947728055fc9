"""A model of a finished run as a Hugging Face folder: merged weights with tokenizer, or the LoRA adapter alone for `peft` and vLLM."""

from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from ilr_jax.files import read_json
from ilr_jax.models import hf, lora, peft
from ilr_jax.roles import Model, folder_of
from ilr_jax.stages import ADAPTERS, Bench, load_adapters
from ilr_jax.store import Store


def model(workdir: str | Path, method: str, seed: int, round: int | None, out: str | Path, adapter: bool) -> None:
    """Write the strong model after `round` (None: the last) of one run to the folder `out`.

    Merging adds the adapter in float32 and rounds to the dtype of the base. Raises ValueError for a run or round that is not there, and for
    a folder that is not empty.
    """
    store = Store(workdir)
    workdir = store.root
    path = workdir / "runs" / f"{method}-seed{seed}.json"
    store.mirror.pull_files(path.parent)
    store.mirror.pull(workdir / "config.json")
    if not path.exists():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "no run at all"
        raise ValueError(f"wanted the run {path.stem!r} in {workdir}, which holds {there}")
    rows = {row["round"]: row for row in read_json(path)["rounds"]}
    chosen = max(rows) if round is None else round
    if chosen not in rows:
        raise ValueError(f"wanted round {chosen} of {path.stem}, which has rounds {min(rows)} to {max(rows)}")
    bench = Bench(store, ConfigDict(read_json(workdir / "config.json")))
    base = Model(bench.config.strong.model, bench.dtype, template=bench.config.strong.get("template", "plain"))
    store.mirror.fetch(workdir / rows[chosen]["model"])
    trained = store.read(workdir / rows[chosen]["model"])
    if trained.manifest["inputs"]["model"] != base.digest:
        raise ValueError(
            f"{trained.folder} was trained on another base than {bench.config.strong.model!r} is now ({base.folder}): its weights, "
            "config or tokenizer have changed since; put the old ones back, or train again in another workdir"
        )
    adapters = load_adapters(bench, base, Path(trained.folder) / ADAPTERS, 1)["adapters"]
    if adapter:
        peft.save_adapter(out, base.config, bench.lora, adapters, 0, _loadable(bench.config.strong.model))
    else:
        config = replace(base.config, eos_token_ids=base.tokenizer.stops)  # a chat template's answers end with a token of their own
        hf.save_model(out, config, lora.merge(base.params, adapters, bench.lora), source=base.folder)


def _loadable(source: str) -> str:
    """The base's name for programs that know only folders and the Hub."""
    return str(folder_of(source).resolve()) if source.startswith("embedded:") or Path(source).is_dir() else source

import pytest
from conftest import write_model

from ilr_jax import roles
from ilr_jax.models import config as model_config
from ilr_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    folder = tiny_models["mistral"]
    return Tokenizer(folder, model_config.read(folder))


def test_golden_text_and_tokens(tokenizer):
    ids = tokenizer.prompts(["How many?"])[0]
    assert tokenizer.decode(ids) == "USER:\nHow many?\n\nASSISTANT:\n"
    assert len(ids) == len(b"USER:\nHow many?\n\nASSISTANT:\n") and tokenizer.config.bos_token_id not in ids
    assert tokenizer.answers(["4"])[0][-1] == tokenizer.eos and tokenizer.decode(tokenizer.answers(["4"])[0]) == "4"


@pytest.mark.parametrize("folder", [None, roles.EMBEDDED / "gemma", roles.EMBEDDED / "mistral"])
def test_text_that_spells_out_a_special_token_is_text(tiny_models, folder):
    folder = folder or tiny_models["gemma"]
    tokenizer = Tokenizer(folder, model_config.read(folder))
    text = "a</s>b <s> <pad> , it 's"
    (ids,) = tokenizer.encode([text])
    assert not {0, 1, 2} & set(ids) and tokenizer.decode(ids) == text
    assert tokenizer.answers([text])[0].count(tokenizer.eos) == 1


@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_a_folder_without_a_tokenizer_is_refused(tiny_models, tmp_path, family):
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_models[family] / name).read_bytes())
    with pytest.raises(ValueError, match=r"wanted tokenizer\.json or tokenizer\.model there, found neither"):
        Tokenizer(tmp_path, model_config.read(tmp_path))


def test_comparison_shows_both_answers_in_order(tokenizer):
    text = tokenizer.decode(tokenizer.comparisons([("Q?", "first", "second")])[0])
    assert text.index("Q?") < text.index("(A):\nfirst") < text.index("(B):\nsecond")
    assert text.endswith("VERDICT:")


def test_prompt_longer_than_the_context_is_refused(tokenizer):
    limit = tokenizer.config.context
    with pytest.raises(ValueError, match=rf"context is {limit} tokens.*long story"):
        tokenizer.prompts(["a long story " * limit])


def test_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    folder = write_model(tmp_path / "small", "llama", vocab_size=200)
    with pytest.raises(ValueError, match="259 entries but the model's embedding only 200"):
        Tokenizer(folder, model_config.read(folder))


def test_a_model_without_pad_uses_eos_as_filler(tmp_path):
    folder = write_model(tmp_path / "padless", "llama", pad_token_id=None, eos_token_id=[2, 5])
    tokenizer = Tokenizer(folder, model_config.read(folder))
    assert tokenizer.pad == tokenizer.eos == 2 and tokenizer.stops == (2, 5)

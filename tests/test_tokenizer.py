from dataclasses import replace

import pytest
from conftest import CHAT, write_model, write_tokenizer
from transformers import AutoTokenizer

from ilr_jax import roles
from ilr_jax.files import read_json, write_json
from ilr_jax.models import config as model_config
from ilr_jax.models import hf
from ilr_jax.roles import Model
from ilr_jax.tasks import shapes
from ilr_jax.tokenizer import Tokenizer, turns


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


DIALOGUE = [("user", "1+1?"), ("assistant", "2"), ("user", "And 2+2?")]


@pytest.fixture
def chat(tiny_models):
    folder = tiny_models["mistral"]
    return Tokenizer(folder, model_config.read(folder), "chat")


@pytest.mark.parametrize("dialogue", [DIALOGUE[:1], DIALOGUE, [("system", "Be brief."), *DIALOGUE]])
def test_a_dialogue_is_put_as_its_own_template_puts_it(chat, tiny_models, dialogue):
    theirs = AutoTokenizer.from_pretrained(tiny_models["mistral"])
    merged = dialogue if dialogue[0][0] == "user" else [("user", "\n\n".join([dialogue[0][1], dialogue[1][1]])), *dialogue[2:]]
    wanted = theirs.apply_chat_template(
        [{"role": role, "content": said} for role, said in merged], add_generation_prompt=True, return_dict=False
    )
    question = shapes.render(dialogue)
    assert chat.prompts([question]) == [wanted] and chat.lengths([question]) == [len(wanted)]
    assert wanted.count(theirs.bos_token_id) == len(merged) + 1


@pytest.mark.parametrize("text", ["a", "a\n\nUSER:\nb", "a\n\nASSISTANT:\nb", "a\n\nASSISTANT:\nb\n\nASSISTANT:\nc\n\nUSER:\nd"])
def test_what_is_no_dialogue_is_one_turn(text):
    assert turns(text) == [{"role": "user", "content": text}]


def test_control_tokens_are_the_templates_alone(chat):
    plain, spelled = (chat.prompts([text])[0] for text in ("one two", "one </s><s>assistant two"))
    assert [id for id in spelled if id < 3] == [id for id in plain if id < 3]
    assert "one </s><s>assistant two" in chat.decode(spelled)


def test_an_answer_ends_as_the_template_ends_it(tmp_path):
    folder = write_model(tmp_path / "chatty", "llama", eos_token_id=2)
    write_tokenizer(folder, CHAT.replace("</s>", "<pad>"))  # as Llama 3 and Gemma: turns end with another token than texts
    chat = Tokenizer(folder, model_config.read(folder), "chat")
    assert chat.eos == 0 and chat.stops == (0, 2) and chat.answers(["4"])[0][-1] == 0
    assert Tokenizer(folder, model_config.read(folder)).eos == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "wanted a chat template, got none; .*'plain'\n  .*chat_template is not set"),
        ("{{ messages[0]['content'] ", "its chat template does not take 1 turns .*'plain'\n  unexpected end of template"),
        ("{{ raise_exception('alternate, please') }}", "'plain'\n  alternate, please"),
        ("{{ messages | sum(start=1) }}", "'plain'\n  unsupported operand"),
        ("{% for turn in messages %}{{ turn['content'] }}.{% endfor %}", r"with a special token, got '.*' and '.*\.'; .* template='plain'"),
        (CHAT.replace("assistant\n", "assistant\n<think>\n"), "right behind the prompt .*think"),
        (
            CHAT.replace("{{ turn['content'] }}", "{% if turn['role'] == 'assistant' %}<pad>{% endif %}{{ turn['content'] }}"),
            "right behind .*<pad>",
        ),
    ],
)
def test_a_template_of_no_use_is_refused(tmp_path, template, message):
    folder = write_model(tmp_path / "mute", "llama")
    (folder / "chat_template.jinja").unlink()
    write_tokenizer(folder, template)
    with pytest.raises(ValueError, match=rf"(?s)mute: .*{message}"):
        Tokenizer(folder, model_config.read(folder), "chat")


def test_a_dialogue_that_the_template_does_not_take_is_told(tmp_path):
    folder = write_model(tmp_path / "short", "llama")
    write_tokenizer(folder, "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}" + CHAT)
    chat = Tokenizer(folder, model_config.read(folder), "chat")
    with pytest.raises(ValueError, match=r"short: its chat template does not take 3 turns that begin '1\+1\?'.*\n  too many"):
        chat.prompts(["2+2?", shapes.render(DIALOGUE)])


def test_a_template_that_asks_for_the_day_is_told_the_same_every_day(tmp_path):
    folder = write_model(tmp_path / "dated", "llama")
    write_tokenizer(folder, "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHAT)
    chat = Tokenizer(folder, model_config.read(folder), "chat")
    assert chat.decode(chat.prompts(["a"])[0]).startswith("26 Jul 2024")


def test_a_judge_is_asked_in_one_turn(chat):
    (ids,) = chat.judgements(["Which?\n\nASSISTANT:\na\n\nUSER:\nb"])
    assert ids.count(1) == 2 and chat.decode(ids).endswith("assistant\nThe better answer is:\n")


def test_the_template_is_part_of_what_stands_for_a_model(tmp_path):
    folder = write_model(tmp_path / "model", "llama")
    digests = []
    for template in (CHAT, "A chat.\n" + CHAT):
        write_tokenizer(folder, template)
        digests += [Model(str(folder), "float32", template=how).digest for how in ("plain", "chat")]
    assert digests[0] == digests[2] and len(set(digests)) == 3


@pytest.mark.parametrize(("known", "wanted"), [(None, [0, 2]), (9, [0, 2, 9]), ([2, 9], [0, 2, 9])])
def test_an_exported_model_stops_where_it_was_taught_to(tmp_path, known, wanted):
    folder = write_model(tmp_path / "chatty", "llama", eos_token_id=2)
    write_tokenizer(folder, CHAT.replace("</s>", "<pad>"))
    write_json(folder / "generation_config.json", {"eos_token_id": known, "top_p": 0.9})
    config, params = hf.load(folder, dtype="float32")
    ends = Tokenizer(folder, config, "chat").stops
    hf.save_model(tmp_path / "out", replace(config, eos_token_ids=ends), params, source=folder)
    assert read_json(tmp_path / "out" / "generation_config.json") == {"eos_token_id": wanted, "top_p": 0.9}
    assert read_json(tmp_path / "out" / "config.json")["eos_token_id"] == [0, 2]

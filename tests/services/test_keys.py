"""Where a key is looked for, and that it is never shown."""

import pytest

from ilr_jax.services.keys import read_key

DOTENV = """
# JUDGE_KEY=commented
OTHER=1
export JUDGE_KEY="first"
 JUDGE_KEY = 'sk-a=b#c'
JUDGE_KEY_2=two
"""


def test_the_environment_comes_before_the_file(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text(DOTENV)
    assert read_key("JUDGE_KEY", tmp_path) == "sk-a=b#c" and read_key("JUDGE_KEY_2", tmp_path) == "two"
    monkeypatch.setenv("JUDGE_KEY", " from-outside\n")
    assert read_key("JUDGE_KEY", tmp_path) == "from-outside"
    assert read_key("", tmp_path) == ""


def test_a_missing_key_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match=r"environment variable JUDGE_KEY or in a line JUDGE_KEY=... of .*\.env, found none"):
        read_key("JUDGE_KEY", tmp_path)


@pytest.mark.parametrize("name", ["sk-proj-secret", "secret key", "1secret"])
def test_a_name_that_may_be_the_key_itself_is_refused_without_showing_it(name):
    with pytest.raises(ValueError, match="key_name: wanted the name of a variable that holds the key, such as OPENAI_API_KEY") as caught:
        read_key(name)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["se cret", "secret\u20ac", "sec\nret"])
def test_a_key_that_no_header_holds_is_refused_without_showing_it(tmp_path, monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(ValueError, match="JUDGE_KEY holds blanks or characters") as caught:
        read_key("JUDGE_KEY", tmp_path)
    assert "ret" not in str(caught.value).replace("secret", "")

"""The tokenizer's rule, and the table of words on its way to the disk and back."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import unspool.vocabulary
from unspool.errors import InputError, ModelFileError
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary, words

texts = st.text(max_size=60)
plain_texts = st.text(alphabet=st.characters(max_codepoint=127), max_size=60)
word_lists = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), max_size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A quietly moving film.", "a quietly moving film ."),
        ("It's a don't-miss film, isn't it?", "it 's a do n't - miss film , is n't it ?"),
        ("They'll say I'd've won't", "they 'll say i 'd 've wo n't"),
        ("o'clock rock'n'roll l'amour", "o'clock rock'n'roll l'amour"),
        ("2.5 stars, 10,000 fans and the 1930s.", "2.5 stars , 10,000 fans and the 1930s ."),
        ("wait... what -- no!!", "wait ... what -- no ! !"),
        ("(good/bad)", "( good / bad )"),
        ("“It’s fine,” she said", '" it \'s fine , " she said'),
        ("snake_case #tag", "snake _ case # tag"),
        ("cliché naïve Über", "cliché naïve über"),
        ("हिन्दी में", "हिन्दी में"),
        ("映画は good", "映 画 は good"),
        ("a\x85b\u3000c", "a b c"),
    ],
)
def test_words_follow_the_rule(text: str, expected: str) -> None:
    assert words(text) == expected.split(" ")


def test_treebank_text_passes_through() -> None:
    line = "`` there 's no plot , '' he said -- but you ca n't , wo n't and do n't mind ... -- ( almost ) !"
    assert words(line) == line.split(" ")


def test_capitals_stay_when_asked_for() -> None:
    assert words("DON'T Mr. Bean's", lowercase=False) == ["DO", "N'T", "Mr", ".", "Bean", "'s"]


def test_composed_and_decomposed_letters_are_one() -> None:
    assert words("cafe\u0301") == words("caf\u00e9") == ["caf\u00e9"]


@given(texts)
@example("\0")
@example("\u200b \u0301")
def test_only_invisible_texts_have_no_words(text: str) -> None:
    assert (words(text) == []) == (text.strip() == "")


@given(texts)
def test_no_word_is_empty_or_holds_a_space(text: str) -> None:
    assert all(word and not any(sign.isspace() for sign in word) for word in words(text))


@given(plain_texts)
def test_the_short_pattern_equals_the_long_one(text: str) -> None:
    assert unspool.vocabulary._ASCII_WORD.findall(text) == unspool.vocabulary._WORD.findall(text)


@given(plain_texts)
def test_words_joined_by_spaces_are_the_same_words(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once


def test_a_very_long_text_is_split_at_once() -> None:
    assert len(words("so good! " * 100_000)) == 300_000
    assert words("a" * 1_000_000) == ["a" * 1_000_000]
    assert len(words("a'" * 200_000)) == 2


def test_build_orders_by_count_then_alphabet() -> None:
    counted = [["b", "a", "c"], ["c", "b", "d"], ["c"]]
    vocabulary = Vocabulary.build(counted, lowercase=True)
    assert vocabulary.tokens == ("<pad>", "<unk>", "c", "b", "a", "d")
    assert Vocabulary.build(counted[::-1], lowercase=True) == vocabulary
    assert Vocabulary.build(counted, min_count=2, lowercase=True).tokens[2:] == ("c", "b")
    assert Vocabulary.build(counted, max_size=3, lowercase=True).tokens == ("<pad>", "<unk>", "c")


def test_build_of_nothing_knows_the_special_tokens_only() -> None:
    vocabulary = Vocabulary.build([], lowercase=True)
    assert len(vocabulary) == 2
    assert vocabulary.encode(["x"]).tolist() == [UNKNOWN]


def test_special_tokens_in_the_texts_do_not_enter_twice() -> None:
    vocabulary = Vocabulary.build([["<unk>", "<pad>", "a"]], lowercase=True)
    assert vocabulary.tokens == ("<pad>", "<unk>", "a")
    assert vocabulary.encode(["<pad>", "<unk>", "a"]).tolist() == [UNKNOWN, UNKNOWN, 2]


@pytest.mark.parametrize("options", [{"min_count": 0}, {"max_size": 1}])
def test_build_refuses_sizes_that_make_no_sense(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="Received: "):
        Vocabulary.build([["a"]], lowercase=True, **options)


@pytest.mark.parametrize(
    "tokens",
    [
        (),
        ("<unk>", "<pad>"),
        ("<pad>", "<unk>", "a", "a"),
        ("<pad>", "<unk>", ""),
        ("<pad>", "<unk>", "\ud800"),
    ],
)
def test_tokens_that_are_no_vocabulary_are_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="not a vocabulary"):
        Vocabulary(tokens, lowercase=True)


@given(word_lists, word_lists)
def test_encode_gives_places(known: list[str], asked: list[str]) -> None:
    vocabulary = Vocabulary.build([known], lowercase=True)
    numbers = vocabulary.encode(asked)
    assert numbers.dtype == np.int64
    assert numbers.shape == (len(asked),)
    assert PAD not in numbers
    for word, number in zip(asked, numbers.tolist(), strict=True):
        expected = word if word in known and word != "<pad>" else "<unk>"
        assert vocabulary.tokens[number] == expected


@given(word_lists, word_lists)
def test_known_words_are_those_that_encode(known: list[str], asked: list[str]) -> None:
    vocabulary = Vocabulary.build([known], lowercase=True)
    special = ("<pad>", "<unk>")
    assert vocabulary.known(asked).tolist() == [word in known and word not in special for word in asked]
    assert vocabulary.known(asked).dtype == np.bool_


@given(word_lists, st.booleans())
def test_a_vocabulary_survives_writing_and_reading(known: list[str], lowercase: bool) -> None:
    vocabulary = Vocabulary.build([known], lowercase=lowercase)
    assert Vocabulary.from_bytes(vocabulary.to_bytes(), "vocab.json") == vocabulary


def test_what_is_written_is_readable_utf8() -> None:
    data = Vocabulary.build([["cliché", "映"]], lowercase=True).to_bytes()
    assert json.loads(data)["tokens"] == ["<pad>", "<unk>", "cliché", "映"]
    assert "cliché" in data.decode("utf-8")


WRITTEN = Vocabulary.build([["good", "bad", "film"]], lowercase=True).to_bytes()


def test_every_truncation_is_refused() -> None:
    for size in range(len(WRITTEN.rstrip())):
        with pytest.raises(ModelFileError, match=r"cut\.json"):
            Vocabulary.from_bytes(WRITTEN[:size], "cut.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "something"}, "'something', version 1"),
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"lowercase": "yes"}, '"lowercase"'),
        ({"lowercase": None}, '"lowercase"'),
        ({"tokens": None}, '"tokens"'),
        ({"tokens": "good"}, '"tokens"'),
        ({"tokens": ["<pad>", "<unk>", 3]}, '"tokens"'),
        ({"tokens": ["good", "bad"]}, "first two tokens"),
        ({"tokens": ["<pad>", "<unk>", "a", "a"]}, "occurs twice"),
        ({"tokens": ["<pad>", "<unk>", ""]}, "is empty"),
        ({"tokens": ["<pad>", "<unk>", "\ud800"]}, "UTF-8"),
    ],
)
def test_an_altered_file_is_refused(change: dict[str, object], said: str) -> None:
    altered = json.dumps(json.loads(WRITTEN) | change).encode("utf-8")
    with pytest.raises(ModelFileError, match=said) as caught:
        Vocabulary.from_bytes(altered, "folder/vocab.json")
    assert "folder/vocab.json" in str(caught.value)
    assert "Fix: " in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff{}", b"[" * 100_000, b'{"format": "unspool-vocabulary"}'])
def test_a_file_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"vocab\.json"):
        Vocabulary.from_bytes(data, "vocab.json")

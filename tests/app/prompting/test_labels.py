"""A vocabulary's labels are single tokens in a decision's lines."""

from string import ascii_uppercase

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from app.prompting.labels import Labels, line
from app.prompting.vocabulary import Vocabulary
from engine.config import DEMO_MODEL_PATH


def vocabulary_of(folder, words):
    """Returns a vocabulary of these words, whose other texts are bytes."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: number for number, token in enumerate([*alphabet, "<pad>", *words])}
    model = BPE(vocab=vocab, merges=[], byte_fallback=True, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    split = pre_tokenizers.Split(Regex("▁?[A-Za-z0-9]+|:|▁"), behavior="isolated")
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return Vocabulary(file)


def test_the_demo_model_has_letters_and_digits():
    labels = Labels.find(Vocabulary(DEMO_MODEL_PATH / "tokenizer.json"), 1280)
    assert labels.letters.texts[:8] == tuple("ABCDEFGH")
    assert len(labels.letters) >= 20
    assert labels.digits.texts == tuple("0123456789")
    assert len(labels.answers) == 2


def test_a_label_is_the_last_token_of_its_line_and_no_other_label_has_it():
    vocabulary = Vocabulary(DEMO_MODEL_PATH / "tokenizer.json")
    labels = Labels.find(vocabulary, 1280)
    for each in (labels.answers, labels.digits, labels.letters):
        tokens = [vocabulary.encode_literally(line(1, text)) for text in each.texts]
        assert [last for *_, last in tokens] == list(each.tokens)
        assert len({tuple(head) for *head, _ in tokens}) == 1
        assert len(set(each.tokens)) == len(each.tokens)


def test_words_of_which_both_are_one_token_stand_for_yes_and_no(tmp_path):
    letters = [f"▁{letter}" for letter in ascii_uppercase]
    whole = vocabulary_of(tmp_path, ["1", ":", "▁yes", "▁no", *letters])
    assert Labels.find(whole, 10**6).answers.texts == ("yes", "no")
    half = vocabulary_of(tmp_path, ["1", ":", "▁yes", *letters])
    assert Labels.find(half, 10**6).answers.texts == ("Y", "N")


def test_a_vocabulary_without_labels_has_none(tmp_path):
    labels = Labels.find(vocabulary_of(tmp_path, [":"]), 10**6)
    assert [len(each) for each in (labels.answers, labels.digits, labels.letters)] == [0, 0, 0]


def test_digits_end_at_the_first_that_is_missing(tmp_path):
    labels = Labels.find(vocabulary_of(tmp_path, ["1", ":", "▁0", "▁1", "▁2", "▁4"]), 10**6)
    assert labels.digits.texts == ("0", "1", "2")


def test_the_form_that_most_labels_have_is_taken(tmp_path):
    split = ["1", ":", "▁", "A", "B", "C"]  # not one token with the space before it
    more = [f"▁{number}" for number in range(10, 20)]
    found = Labels.find(vocabulary_of(tmp_path, [*split, *more]), 10**6)
    assert found.letters.texts == ("A", "B", "C", "1")


@pytest.mark.parametrize("lacking", ["▁A", "▁B"])
def test_tokens_that_the_model_lacks_are_no_labels(tmp_path, lacking):
    words = ["1", ":", *(f"▁{c}" for c in "ABC" if f"▁{c}" != lacking), lacking]
    vocabulary = vocabulary_of(tmp_path, words)
    labels = Labels.find(vocabulary, vocabulary.tokenizer.token_to_id(lacking))
    assert lacking[1:] not in labels.letters.texts
    assert len(labels.letters) == 2

# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of reports: learnt alike each time, opened from BERT folders, honest about what it does not know."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
from text_cases import SENTENCES, small_tokenizer

from monai_ssl.data import ReportTokenizer
from monai_ssl.networks import TextTransformer


def bert_folder(folder, words, **settings):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_sentences_become_numbers_between_first_and_last_token():
    tokenizer = small_tokenizer()
    assert tokenizer.tokens("Small LEFT effusion.") == ["[CLS]", "small", "left", "effusion", ".", "[SEP]"]
    short, long = tokenizer.encode(["effusion", "no effusion in the left lung"])
    assert [short[0], short[-1]] == [long[0], long[-1]] == [2, 3]
    assert (len(short), tokenizer.pad_id) == (3, 0)
    assert tokenizer.encode([]) == []


def test_a_long_sentence_loses_its_end_but_not_the_last_token():
    tokenizer = small_tokenizer()
    whole, cut = (tokenizer.encode([SENTENCES[0]], length)[0] for length in (None, 5))
    assert cut == [*whole[:4], 3]
    assert tokenizer.encode([SENTENCES[0]], len(whole)) == [whole]
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        tokenizer.encode(["x"], 2)


def test_the_same_reports_give_the_same_vocabulary_each_time_and_in_any_order():
    """The library's trainer alone gives another one at each call: it breaks ties by the order of a hash table."""
    import tokenizers

    def plain() -> str:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=80, special_tokens=["[PAD]", "[UNK]"], show_progress=False
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
        return str(sorted(tokenizer.get_vocab().items()))

    if len({plain() for _ in range(4)}) == 1:
        pytest.fail("the library has become deterministic: the work-around can go")
    orders = (SENTENCES, SENTENCES[::-1], sorted(SENTENCES), SENTENCES)
    assert len({ReportTokenizer.train(order, 80, min_frequency=2).fingerprint for order in orders}) == 1


def test_rare_words_and_letters_are_not_learnt():
    texts = [*["no effusion"] * 9, "effusion seen by Quentin"]
    tokenizer = ReportTokenizer.train(texts, 200, min_frequency=5)
    assert "effusion" in tokenizer.tokens("effusion")
    assert "quentin" not in tokenizer.to_json().lower()
    assert "[UNK]" in tokenizer.tokens("Quentin"), "q occurs once"
    assert tokenizer.unknown_rate(["no effusion"]) == 0
    assert tokenizer.unknown_rate(["no qqq"]) == 0.5


def test_case_may_be_kept():
    cased = ReportTokenizer.train(["Left LEFT left"] * 9, 100, lowercase=False)
    assert cased.tokens("Left LEFT left")[1:-1] == ["Left", "LEFT", "left"]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "no text to learn a vocabulary from"),
        (["rare"], {}, "no letter occurs 5 times"),
        (SENTENCES, {"vocab_size": 20}, "vocab_size must be at least"),
        (SENTENCES, {"min_frequency": 0}, "min_frequency must be at least 1"),
    ],
)
def test_what_can_not_be_learnt_from(texts, options, message):
    with pytest.raises(ValueError, match=message) as error:
        ReportTokenizer.train(texts, **options)
    assert "effusion" not in str(error.value), "no text of a report in a message"


def test_saved_and_opened_it_is_the_same(tmp_path):
    tokenizer = small_tokenizer()
    assert tokenizer.save(tmp_path / "new").name == "tokenizer.json"
    for other in (
        ReportTokenizer.from_folder(tmp_path / "new"),
        ReportTokenizer.from_json(tokenizer.to_json()),
        pickle.loads(pickle.dumps(tokenizer)),  # a worker process gets it so
    ):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.encode(SENTENCES) == tokenizer.encode(SENTENCES)
    assert ReportTokenizer.train(SENTENCES, 60, min_frequency=2).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_bert_folder_with_a_list_of_words(tmp_path, lowercase):
    folder = bert_folder(tmp_path / "bert", ["effusion", "Effusion", "##s", "no"], do_lower_case=lowercase)
    tokenizer = ReportTokenizer.from_folder(folder)
    first = "effusion" if lowercase else "Effusion"
    assert tokenizer.tokens("Effusions no x") == ["[CLS]", first, "##s", "no", "[UNK]", "[SEP]"]
    assert (tokenizer.vocab_size, tokenizer.unknown_id) == (9, 1)
    assert tokenizer.unknown_rate(["no x"]) == 0.5


def test_the_same_tokens_as_transformers(tmp_path):
    import transformers

    folder = bert_folder(tmp_path / "bert", ["small", "effusion", "##s", ".", "no", "-", "left"], do_lower_case=True)
    theirs = transformers.BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    texts = ["Small effusions.", "No left-effusion ...", "Épanchement"]
    assert ReportTokenizer.from_folder(folder).encode(texts) == theirs(texts)["input_ids"]


def test_folders_that_hold_no_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.txt"):
        ReportTokenizer.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ReportTokenizer.from_folder(tmp_path / "missing")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged or no tokenizer"):
        ReportTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb")
    with pytest.raises(ValueError, match="none for padding"):
        ReportTokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match="no description of a tokenizer"):
        ReportTokenizer.from_json("no JSON")


@pytest.mark.parametrize("failure", ["no route", "unknown", "not kept"])
def test_a_hub_that_does_not_answer_or_does_not_know(monkeypatch, failure):
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    kinds = {"no route": ConnectionError, "unknown": HFValidationError, "not kept": LocalEntryNotFoundError}

    def download(*_, **__):
        raise kinds[failure]("x")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    expected = "has no model of that name" if failure == "unknown" else "can't be reached"
    with pytest.raises(FileNotFoundError, match=f"no folder 'lab/bert'.*{expected}"):
        ReportTokenizer.from_folder("lab/bert")


def test_a_file_of_the_hub(monkeypatch, tmp_path):
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    folder = bert_folder(tmp_path / "bert", ["no"])

    def download(repo: str, name: str) -> str:
        assert repo == "lab/bert"
        if not (folder / name).is_file():
            raise EntryNotFoundError("x")
        return str(folder / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert ReportTokenizer.from_folder("lab/bert").tokens("No") == ["[CLS]", "no", "[SEP]"]


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"monai-ssl\[text\]"):
        ReportTokenizer.train(SENTENCES)


def test_a_tokenizer_and_an_encoder_that_do_not_belong_together():
    tokenizer = small_tokenizer()

    def encoder(vocab_size: int) -> TextTransformer:
        return TextTransformer(vocab_size, hidden_size=8, num_layers=1, num_heads=1)

    assert tokenizer.check_fits(encoder(tokenizer.vocab_size), SENTENCES) is tokenizer
    tokenizer.check_fits(encoder(tokenizer.vocab_size + 27))
    for size in (tokenizer.vocab_size - 1, 28996):
        with pytest.raises(ValueError, match="do not belong together"):
            tokenizer.check_fits(encoder(size))
    with pytest.raises(ValueError, match=r"100% of the tokens of 1 sentences are unknown"):
        tokenizer.check_fits(encoder(tokenizer.vocab_size), ["肺炎"])

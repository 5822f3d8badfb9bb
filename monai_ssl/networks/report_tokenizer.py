# SPDX-License-Identifier: Apache-2.0
"""From sentences to the numbers that a text encoder reads: a WordPiece vocabulary learnt from reports, or BERT's own.

Schuster, Nakajima, *Japanese and Korean voice search*, ICASSP 2012, and Devlin et al., *BERT*, NAACL 2019, arXiv
1810.04805. The work is done by Hugging Face's ``tokenizers`` (extra ``text``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .text_files import need_text_package, text_file

if TYPE_CHECKING:
    from .sentence_encoder import SentenceEncoder

__all__ = ["ReportTokenizer"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Names of padding, unknown, first and last token in BERT's vocabularies and in RoBERTa's.
_KNOWN_SPECIAL = (("[PAD]", "[UNK]", "[CLS]", "[SEP]"), ("<pad>", "<unk>", "<s>", "</s>"))
_MOST_SPARE_ROWS = 1024


class ReportTokenizer:
    """Sentences to lists of token numbers, ``[CLS] ... [SEP]``; made by :meth:`train`, :meth:`from_folder`, ...

    A vocabulary that was trained on reports holds words of these reports that occur often. Whoever gets the tokenizer,
    or weights with it, can read them; ``min_frequency`` keeps rare ones, such as names, out.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` with BERT's or RoBERTa's special tokens.

    Attributes:
        vocab_size: number of tokens.
        pad_id: number that fills up short sentences.
        unknown_id: number of what the vocabulary can't write.

    Raises:
        ValueError: it has no token for padding, unknown words, beginning or end.

    Example:
        >>> tokenizer = ReportTokenizer.train(["No pleural effusion.", "Small pleural effusion."] * 5, vocab_size=80)
        >>> tokenizer.tokens("Small effusion.")
        ['[CLS]', 'small', 'effusion', '.', '[SEP]']
        >>> len(tokenizer.encode(["Small effusion."])[0])
        5
    """

    def __init__(self, tokenizer: Any) -> None:
        for names in _KNOWN_SPECIAL:
            numbers = [tokenizer.token_to_id(name) for name in names]
            if None not in numbers:
                break
        else:
            raise ValueError(
                f"the vocabulary of {tokenizer.get_vocab_size():,} tokens has none for padding, unknown, beginning and "
                f"end under the names {' '.join(_KNOWN_SPECIAL[0])} or {' '.join(_KNOWN_SPECIAL[1])}"
            )
        self.pad_id, self.unknown_id, self._first, self._last = numbers
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 4096, *, lowercase: bool = True, min_frequency: int = 5
    ) -> ReportTokenizer:
        """Learn a WordPiece vocabulary. The same texts give the same vocabulary, in any order and process.

        Args:
            texts: sentences or reports.
            vocab_size: most tokens, the five special ones and all letters counted; there are fewer if the texts do not
                yield as many.
            lowercase: also takes accents off.
            min_frequency: pieces and letters that occur less often are not learnt.

        Raises:
            ValueError: no text, or a number out of its range.
            ImportError: the extra ``text`` is not installed.
        """
        library = need_text_package("tokenizers")
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1, got {min_frequency}")
        normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
        splitter = library.pre_tokenizers.BertPreTokenizer()
        words: Counter[str] = Counter()
        for text in texts:
            words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        letters: Counter[str] = Counter()
        for word, count in words.items():
            letters.update({letter: count * word.count(letter) for letter in set(word)})
        alphabet = sorted(letter for letter, count in letters.items() if count >= min_frequency)
        if not alphabet:
            raise ValueError(
                f"there is no text to learn a vocabulary from: {len(words)} different words, no letter occurs "
                f"{min_frequency} times"
            )
        # The trainer breaks ties by the numbers of letters, which it gives out in the random order of a hash table
        # unless they are settled before, as "special" tokens are.
        settled = [*_SPECIAL, *alphabet, *(f"##{letter}" for letter in alphabet)]
        if vocab_size < len(settled):
            raise ValueError(
                f"vocab_size must be at least {len(settled)}, for {len(alphabet)} letters alone and within words and "
                f"{len(_SPECIAL)} special tokens, got {vocab_size}"
            )
        trained = _word_piece(library, None)
        trained.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
        trainer = library.trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=settled, show_progress=False
        )
        known = set(alphabet)
        kept = (word for word, count in sorted(words.items()) for _ in range(count) if known.issuperset(word))
        trained.train_from_iterator(kept, trainer)
        tokenizer = _word_piece(library, trained.get_vocab())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        return cls(_with_ends(library, tokenizer))

    @classmethod
    def from_folder(cls, path: str | Path) -> ReportTokenizer:
        """Open the tokenizer of a BERT: of a local folder, or of the Hugging Face hub.

        Args:
            path: folder with ``tokenizer.json``, or with ``vocab.txt`` and perhaps ``tokenizer_config.json``; or the
                name of a model in the hub, for example ``"emilyalsentzer/Bio_ClinicalBERT"``.

        Raises:
            FileNotFoundError: neither file is there, no such model, or the hub can't be reached.
            ValueError: a file can't be read or has no special tokens.
            ImportError: the extra ``text`` is not installed.
        """
        library = need_text_package("tokenizers")
        whole, words = text_file(path, "tokenizer.json"), None
        if whole is None:
            words = text_file(path, "vocab.txt")
        if whole is None and words is None:
            raise FileNotFoundError(f"{path} has neither tokenizer.json nor vocab.txt: it is no tokenizer of a BERT")
        try:
            if whole is not None:
                return cls(library.Tokenizer.from_file(str(whole)))
            tokenizer = _word_piece(library, library.models.WordPiece.read_file(str(words)))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{whole or words} is damaged or no tokenizer: {error}") from error
        settings = text_file(path, "tokenizer_config.json")
        options = json.loads(settings.read_text(encoding="utf-8")) if settings is not None else {}
        tokenizer.normalizer = library.normalizers.BertNormalizer(
            lowercase=bool(options.get("do_lower_case", True)), strip_accents=options.get("strip_accents")
        )
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        return cls(_with_ends(library, tokenizer))

    @classmethod
    def from_json(cls, text: str) -> ReportTokenizer:
        """Make the tokenizer that :meth:`to_json` described.

        Raises:
            ValueError: the text describes none.
            ImportError: the extra ``text`` is not installed.
        """
        library = need_text_package("tokenizers")
        try:
            return cls(library.Tokenizer.from_str(text))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"this is no description of a tokenizer: {error}") from error

    def to_json(self) -> str:
        """Describe the tokenizer completely, the same way each time."""
        return json.dumps(json.loads(self._tokenizer.to_str()), ensure_ascii=False, sort_keys=True)

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.json`` into a folder, for :meth:`from_folder` and for ``transformers``; return its path."""
        path = Path(folder) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self._tokenizer.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """Hash of the tokenizer: equal where sentences become the same numbers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Return the token numbers of each text, with its first and last token.

        Args:
            texts: sentences.
            max_length: most tokens of a text; what is longer loses its end, but not the last token.

        Raises:
            ValueError: ``max_length`` is below 3.
        """
        if max_length is not None and max_length < 3:
            raise ValueError(f"max_length must be at least 3, got {max_length}")
        found = (encoding.ids for encoding in self._tokenizer.encode_batch(list(texts)))
        if max_length is None:
            return list(found)
        return [ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]] for ids in found]

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of one text as they are written in the vocabulary."""
        return self._tokenizer.encode(text).tokens

    def unknown_rate(self, texts: Sequence[str]) -> float:
        """Return the share of unknown ones among the tokens of texts, first and last tokens not counted; in [0, 1]."""
        ids = [number for one in self.encode(texts) for number in one[1:-1]]
        return sum(number == self.unknown_id for number in ids) / max(1, len(ids))

    def check_fits(
        self, text_encoder: SentenceEncoder, texts: Sequence[str] = (), max_unknown_rate: float = 0.1
    ) -> ReportTokenizer:
        """Refuse to go on with a text encoder of another vocabulary, or with texts that this one can't write.

        Args:
            text_encoder: has ``vocab_size``. It may have some more rows than there are tokens, as padded ones do.
            texts: sentences of those that will be read.
            max_unknown_rate: of these.

        Returns:
            The tokenizer.

        Raises:
            ValueError: what does not fit.
        """
        spare = text_encoder.vocab_size - self.vocab_size
        if not 0 <= spare <= _MOST_SPARE_ROWS:
            raise ValueError(
                f"the tokenizer has {self.vocab_size:,} tokens and the text encoder is built for "
                f"{text_encoder.vocab_size:,}: they do not belong together; take both from one folder, or build the "
                "encoder with vocab_size=tokenizer.vocab_size"
            )
        rate = self.unknown_rate(texts)
        if rate > max_unknown_rate:
            raise ValueError(
                f"{rate:.0%} of the tokens of {len(texts)} sentences are unknown to the tokenizer, more than "
                f"{max_unknown_rate:.0%}: it is of another language or alphabet; train one on the reports themselves"
            )
        return self


def _word_piece(library: ModuleType, vocab: dict[str, int] | None) -> Any:
    tokenizer = library.Tokenizer(library.models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.decoder = library.decoders.WordPiece()
    return tokenizer


def _with_ends(library: ModuleType, tokenizer: Any) -> Any:
    """Let every text begin with [CLS] and end with [SEP], and no text hold special tokens cut in pieces."""
    tokenizer.add_special_tokens([name for name in _SPECIAL if tokenizer.token_to_id(name) is not None])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    if None not in dict(ends).values():
        tokenizer.post_processor = library.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer

# SPDX-License-Identifier: Apache-2.0
"""A BERT of Hugging Face's ``transformers`` as text encoder, for example ClinicalBERT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .sentence_encoder import SentenceEncoder
from .text_files import need_text_package, text_file

__all__ = ["PretrainedTextEncoder"]

CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
_NOT_KEPT = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
}  # a path may name a person


class PretrainedTextEncoder(SentenceEncoder):
    """BERT, RoBERTa, ELECTRA or DistilBERT with its weights, (B, T) -> (B, F).

    Weights are read from ``model.safetensors`` only; nothing is ever unpickled, and no code of a model is run. Its
    pooler, which ConVIRT has no use for, is left out.

    Args:
        source: folder with ``config.json`` and ``model.safetensors``, or the name of a model in the Hugging Face hub,
            which is fetched once. The default is what ConVIRT starts from: BERT-base, trained on the notes of MIMIC
            (Alsentzer et al., *Publicly Available Clinical BERT Embeddings*, 2019, arXiv 1904.03323).
        pooling: see :func:`monai_ssl.networks.pool_tokens`; ConVIRT takes the maximum.
        frozen_layers: the embeddings and so many layers keep their weights, ConVIRT's 6 of 12; 0: the embeddings alone;
            None: all learn.
        config: build this network, with random weights, and read nothing: a model's ``config.json`` as a dictionary.

    Attributes:
        net: the network of ``transformers``.

    Raises:
        FileNotFoundError: no such folder or model, or the hub can't be reached.
        ValueError: not a model of this kind, no weights in safetensors format, or a number out of its range.
        ImportError: the extra ``text`` is not installed.
    """

    def __init__(
        self,
        source: str | Path | None = CLINICAL_BERT,
        pooling: str = "max",
        frozen_layers: int | None = 6,
        config: dict[str, Any] | None = None,
    ) -> None:
        library = need_text_package("transformers")
        net = _open(library, source) if config is None else _build(library, config)
        settings = net.config
        layers = _layers(net)
        # RoBERTa's positions begin after the padding's own.
        reserved = net.embeddings.padding_idx + 1 if hasattr(net.embeddings, "padding_idx") else 0
        super().__init__(
            settings.hidden_size, settings.vocab_size, settings.max_position_embeddings - reserved, pooling
        )
        if getattr(net, "pooler", None) is not None:
            net.pooler = None
        self.net = net
        self.freeze(frozen_layers, [net.embeddings], layers)

    def token_features(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return a vector for each token, (B, T, F)."""
        return self.net(input_ids=tokens, attention_mask=token_mask.long()).last_hidden_state

    def description(self) -> dict[str, Any]:
        """See :meth:`SentenceEncoder.description`; no path is in it."""
        config = {key: value for key, value in self.net.config.to_dict().items() if key not in _NOT_KEPT}
        return {
            "kind": type(self).__name__,
            "pooling": self.pooling,
            "frozen_layers": self.frozen_layers,
            "config": config,
        }


def _open(library: Any, source: str | Path | None) -> nn.Module:
    if source is None:
        raise ValueError("give the folder of a BERT, or its name in the Hugging Face hub")
    if text_file(source, "config.json") is None:
        raise ValueError(f"{source} has no config.json: it is no model of transformers")
    try:
        # Where the hub's main branch has no safetensors, transformers looks for the hub's own conversion of the model.
        net = library.AutoModel.from_pretrained(str(source), use_safetensors=True, trust_remote_code=False)
    except OSError as error:
        raise ValueError(
            f"{source} has no weights in safetensors format; those of other formats are not read, since they may run "
            "code. Where you trust them, convert them once with transformers: "
            "AutoModel.from_pretrained(folder).save_pretrained(folder)"
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"transformers can't open {source}: {_first_line(error)}") from error
    return net.float()


def _build(library: Any, config: dict[str, Any]) -> nn.Module:
    try:
        settings = library.AutoConfig.for_model(**config)
        return library.AutoModel.from_config(settings, trust_remote_code=False).float()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"transformers can't build a {config.get('model_type')!r}: {_first_line(error)}") from error


def _layers(net: nn.Module) -> nn.ModuleList:
    """The transformer blocks of the network."""
    stack = getattr(net, "encoder", None) or getattr(net, "transformer", None)  # DistilBERT has the latter
    layers = getattr(stack, "layer", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(net, "embeddings"):
        raise ValueError(
            f"{type(net).__name__} is not built as BERT is (embeddings, then encoder.layer); BERT, RoBERTa, ELECTRA "
            "and DistilBERT are"
        )
    return layers


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

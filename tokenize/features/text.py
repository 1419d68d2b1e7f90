"""Texts: a T5's hidden states, or a CLAP's vector of the sentence.

Shapes: B texts, L tokens, E width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from ...core import schema_features as schema
from ...core.clap import ClapNetwork, load_clap_network
from ...core.errors import UserError
from ...core.hub_model import HubModel, find_hub_model, load_hub_model
from ..codec import library_versions
from .feature import FeatureInfo, TextEncoder

_FILES = ("tokenizer.json", "tokenizer_config.json")


class T5Text(TextEncoder):
    """The last hidden states of a T5's encoder (arXiv:1910.10683), `[L, E]`, one a token with the end token.

    As MusicGen and Stable Audio are told their prompts. What fills a batch up is cut off.
    """

    def __init__(
        self,
        info: FeatureInfo,
        model: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        super().__init__(info)
        self._model = model.to(device)
        self._tokenizer = tokenizer
        self._device = device

    def num_tokens(self, text: str) -> int:
        """L of a text."""
        return len(self._tokenizer(text, truncation=True, max_length=self.info.max_tokens)["input_ids"])

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Texts to `[L, E]` each."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.info.max_tokens, return_tensors="pt"
        ).to(self._device)
        mask = tokens["attention_mask"]
        states = self._model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return [found[kept.bool()] for found, kept in zip(states, mask, strict=True)]


class ClapText(TextEncoder):
    """A CLAP's vector of a sentence (arXiv:2211.06687), `[1, E]`, of length 1."""

    def __init__(self, info: FeatureInfo, network: ClapNetwork) -> None:
        super().__init__(info)
        self._network = network

    def num_tokens(self, text: str) -> int:
        """Tokens of a text before it is cut."""
        return len(self._network.tokenizer(text)["input_ids"])

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Texts to `[1, E]` each."""
        return list(self._network.embed_text(texts, self.info.max_tokens)[:, None])


def load_text(config: schema.TextFeature, device: torch.device) -> TextEncoder:
    """The encoder that a recipe names; raises `UserError` if it cannot be had, or is neither a T5 nor a
    CLAP."""
    found = find_hub_model("text encoder", config.encoder, config.encoder, None, _FILES, config.revision)
    match found.config.get("model_type"):
        case "t5":
            t5 = T5Config.from_dict(found.config)
            model = load_hub_model("text encoder", config.encoder, T5EncoderModel, t5, found)
            tokenizer = AutoTokenizer.from_pretrained(found.folder, local_files_only=True)
            return T5Text(_info(config, found, t5.d_model), model, tokenizer, device)
        case "clap":
            network = load_clap_network(
                "text encoder", config.encoder, config.encoder, None, device, revision=config.revision
            )
            return ClapText(_info(config, found, network.width), network)
        case kind:
            raise UserError(
                f"text encoder {config.encoder} is of type '{kind}': a T5, such as google-t5/t5-base, or a"
                " CLAP is needed"
            )


def _info(config: schema.TextFeature, found: HubModel, dim: int) -> FeatureInfo:
    return FeatureInfo(
        name=config.name,
        kind="text",
        dim=dim,
        frame_rate=None,
        store=config.store,
        versions=library_versions(),
        encoder=config.encoder,
        revision=found.version,
        column=config.column,
        max_tokens=config.max_tokens,
    )

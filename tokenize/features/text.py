"""Texts: a T5's hidden states, or a CLAP's vector of the sentence.

Shapes: B texts, L tokens, E width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from ...core import schema_features as schema
from ...core.clap import ClapNetwork, load_clap_network
from ...core.errors import UserError
from ...core.hub_cache import hub_snapshot
from ...core.hub_model import HubModel, find_hub_model, load_hub_model
from ..codec import library_versions
from .feature import FeatureInfo, TextEncoder

_FILES = ("tokenizer.json", "tokenizer_config.json")
_PIPELINE = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    *(f"tokenizer/{file}" for file in _FILES),
)


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
        self.device = device
        self._model = model.to(device)
        self._tokenizer = tokenizer

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text with the end token, L of them."""
        return _token_ids(self._tokenizer, text, self.info.max_tokens)

    def encode(self, tokens: Sequence[list[int]]) -> list[Tensor]:
        """Texts, by their tokens, to `[L, E]` each."""
        filled = _filled_up(tokens, self._tokenizer.pad_token_id)
        states = self._model(
            input_ids=filled.ids.to(self.device), attention_mask=filled.mask.to(self.device)
        ).last_hidden_state
        return [found[: len(text)] for found, text in zip(states, tokens, strict=True)]


class ClapText(TextEncoder):
    """A CLAP's vector of a sentence (arXiv:2211.06687), `[1, E]`, of length 1."""

    def __init__(self, info: FeatureInfo, network: ClapNetwork) -> None:
        super().__init__(info)
        self.device = network.device
        self._network = network

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, no more than the network can take."""
        limit = min(self.info.max_tokens or math.inf, self._network.tokenizer.model_max_length)
        return _token_ids(self._network.tokenizer, text, int(limit))

    def encode(self, tokens: Sequence[list[int]]) -> list[Tensor]:
        """Texts, by their tokens, to `[1, E]` each."""
        filled = _filled_up(tokens, self._network.tokenizer.pad_token_id)
        return list(self._network.embed_tokens(filled.ids, filled.mask)[:, None])


@dataclass(frozen=True)
class _FilledUp:
    """Texts of one length."""

    ids: Tensor  # [B, L] int64
    mask: Tensor  # [B, L] int64, 0 where nothing is


def _filled_up(tokens: Sequence[list[int]], pad_id: int) -> _FilledUp:
    def to_one_length(rows: Sequence[Tensor], value: int) -> Tensor:
        return pad_sequence(list(rows), batch_first=True, padding_value=value)

    ids = [torch.tensor(text) for text in tokens]
    return _FilledUp(to_one_length(ids, pad_id), to_one_length([torch.ones_like(text) for text in ids], 0))


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    return ids


def load_text(config: schema.TextFeature, device: torch.device) -> TextEncoder:
    """The encoder that a recipe names; raises `UserError` if it cannot be had, or is neither a T5 nor a
    CLAP."""
    found, tokenizer_folder = _find(config)
    match found.config.get("model_type"):
        case "t5":
            t5 = T5Config.from_dict(found.config)
            model = load_hub_model("text encoder", config.encoder, T5EncoderModel, t5, found)
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
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


def _find(config: schema.TextFeature) -> tuple[HubModel, Path]:
    """The encoder and the folder of its tokenizer: one folder, or two beside each other in a pipeline of
    `diffusers`, such as Stable Audio's."""
    name, folder = config.encoder, Path(config.encoder)
    version = None
    if not folder.exists():
        layouts = [("config.json", *_FILES), _PIPELINE]
        snapshot = hub_snapshot(name, config.revision, layouts, "text encoder")
        folder, version = snapshot.folder, snapshot.revision
    if (folder / "config.json").exists() or not (folder / _PIPELINE[0]).exists():
        found = find_hub_model("text encoder", name, name, None, _FILES, config.revision)
        return found, found.folder
    found = find_hub_model("text encoder", name, name, folder / "text_encoder", ())
    if version is not None:
        found = dataclasses.replace(found, version=version)
    return found, folder / "tokenizer"


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

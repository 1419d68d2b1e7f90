"""A decoder-only Transformer over the tokens of a neural codec.

One step of the sequence holds at most one token of each of the K codebooks (`patterns.py` says which): their
embeddings are summed into one vector, the blocks mix the steps causally, and one head predicts the K tokens
of the next step, each given everything before that step. Labels of the clip are summed into every step.

Blocks are pre-norm with RMSNorm (arXiv:1910.07467), rotary positions (arXiv:2104.09864), normalised queries
and keys (arXiv:2010.04245) and SwiGLU (arXiv:2002.05202); nothing has a bias.

Shapes: B batch, K codebooks, T frames, S pattern steps, V codebook size, D model width, H heads.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from ..core.errors import UserError
from ..core.files import atomic_file, write_json
from .conditions import HIDDEN, LabelVocabulary
from .patterns import DelayPattern, Pattern

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INIT_STD = 0.02


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the shape of a model and the meaning of its tokens."""

    num_codebooks: int
    """K."""
    codebook_size: int
    """V; the token V is special: it stands where a codebook has no token."""
    frame_rate: float
    """Frames a second."""
    delays: tuple[int, ...]
    """[K] steps by which the pattern shifts each codebook."""
    dim: int = 256
    """Width of the residual stream."""
    num_layers: int = 6
    num_heads: int = 4
    """Must divide `dim` into heads of even width."""
    dropout: float = 0.0
    """On the residual branches, while training."""
    pattern: Literal["delay"] = "delay"
    vocabulary: LabelVocabulary = field(default_factory=LabelVocabulary)
    """Labels that condition the model; empty for none."""
    codec: Mapping[str, Any] = field(default_factory=dict)
    """The content of `codec.json`: which codec turns the tokens into audio."""

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise UserError(
                f"dim {self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
                " (rotary positions need an even head width)"
            )
        if len(self.delays) != self.num_codebooks or min(self.delays) != 0:
            raise UserError(
                f"delays {list(self.delays)} must be {self.num_codebooks} numbers,"
                " one a codebook, the smallest 0"
            )
        if self.pattern != "delay":
            raise UserError(f"unknown codebook pattern {self.pattern!r}: known is 'delay'")
        for name in ("num_codebooks", "codebook_size", "frame_rate"):
            if name in self.codec and self.codec[name] != getattr(self, name):
                raise UserError(
                    f"{name} is {getattr(self, name)} for the model but {self.codec[name]} for its codec"
                )

    @classmethod
    def for_codec(
        cls,
        codec: Mapping[str, Any],
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        dropout: float = 0.0,
        vocabulary: LabelVocabulary | None = None,
    ) -> Self:
        """A model for the tokens of `codec` (the content of `codec.json`), each codebook one step later."""
        num_codebooks: int = codec["num_codebooks"]
        return cls(
            num_codebooks=num_codebooks,
            codebook_size=codec["codebook_size"],
            frame_rate=codec["frame_rate"],
            delays=tuple(range(num_codebooks)),
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout=dropout,
            vocabulary=vocabulary or LabelVocabulary(),
            codec=codec,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`; raises `UserError` that names unknown or missing settings."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known.keys())
        required = {
            name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING
        }
        missing = sorted(required - values.keys())
        if unknown or missing:
            raise UserError(
                f"this is not the {CONFIG_NAME} of a Transformer:"
                f" unknown settings {unknown}, missing settings {missing}"
            )
        return cls(
            **{
                **values,
                "delays": tuple(values["delays"]),
                "vocabulary": LabelVocabulary(values.get("vocabulary", {})),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        vocabulary = {name: list(known) for name, known in self.vocabulary.values.items()}
        return values | {"delays": list(self.delays), "vocabulary": vocabulary, "codec": dict(self.codec)}

    @property
    def special(self) -> int:
        """The token of a step at which a codebook has none: V."""
        return self.codebook_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    def make_pattern(self) -> Pattern:
        """The codebook pattern that the model was built for."""
        return DelayPattern(self.delays)


@dataclass
class LMLoss:
    """Cross-entropy of the tokens of a batch, in nats."""

    mean: Tensor  # scalar: over all tokens that count
    num_tokens: Tensor  # scalar int64: how many those are
    per_codebook: Tensor  # [K]: mean of each codebook; detached


# Wrappers such as FSDP look for tensors in what a module returns; they look into registered classes only.
register_dataclass(LMLoss, field_names=["mean", "num_tokens", "per_codebook"])


class KVCache:
    """Keys and values of the steps so far, in buffers that never move or grow."""

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = config.num_layers, batch_size, config.num_heads, max_length, config.head_dim
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.max_length = max_length
        self.length = 0
        """Steps that every layer has seen."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, H, S, D/H] after the filled part; returns views of all of it, [B, H, length + S, D/H].

        Raises `ValueError` where the buffers are too short.
        """
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} steps, {end} are needed")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


# RoPE: RoFormer, arXiv:2104.09864, eq. 34, where dimension i of a head is paired with i + D/2H.
def rotary_tables(start: int, num_steps: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles at positions start to start + S - 1: two [S, D/2H] float32.

    Computed when needed: a table of fixed length would bound how long a clip can be.
    """
    frequencies = 10000.0 ** -torch.linspace(0, 1, head_dim // 2 + 1, device=device)[:-1]
    angles = torch.arange(start, start + num_steps, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of dimensions of `x` [B, H, S, D/H] by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


# RMSNorm: arXiv:1910.07467, eq. 4.
class RMSNorm(nn.RMSNorm):
    """Normalisation whose gains take the input's type: under autocast, torch fuses it only if they agree."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to the same."""
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=1e-6)
        self.k_norm = RMSNorm(config.head_dim, eps=1e-6)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        num_steps = x.shape[1]
        # [B, S, 3 D] to three of [B, H, S, D/H]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary)
        num_past = 0
        if cache is not None:
            num_past = cache.length
            k, v = cache.extend(self.layer, k, v)
        if num_past == 0 or num_steps == 1:
            x = F.scaled_dot_product_attention(q, k, v, is_causal=num_past == 0 and num_steps > 1)
        else:  # SDPA's own causal mask would align the first query with the first key
            shape = num_steps, num_past + num_steps
            mask = torch.ones(shape, dtype=torch.bool, device=x.device).tril(num_past)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return y


# SwiGLU: arXiv:2002.05202, eq. 6; a hidden width of 8/3 D keeps the parameters of a plain 4 D layer.
class FeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = 32 * math.ceil(8 * config.dim / 3 / 32)
        self.gate_up = nn.Linear(config.dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(F.silu(gate) * up)
        return y


class Block(nn.Module):
    """One layer: attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=1e-6)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.dim, eps=1e-6)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, cache))
        y: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return y


class TransformerLM(nn.Module, PyTorchModelHubMixin, library_name="tokkata", tags=["music-generation"]):
    """A language model over codes [B, K, T]; `forward` is its training loss, `logits` its prediction."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.pattern = config.make_pattern()
        table_sizes = config.vocabulary.table_sizes
        # All tables of a kind are one, and the rows of codebook k (or label i) begin at its offset.
        self.token_embedding = nn.Embedding((config.codebook_size + 1) * config.num_codebooks, config.dim)
        self.label_embedding = nn.Embedding(sum(table_sizes), config.dim) if table_sizes else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.dim, eps=1e-6)
        self.head = nn.Linear(config.dim, config.num_codebooks * config.codebook_size, bias=False)

        token_offsets = torch.arange(config.num_codebooks) * (config.codebook_size + 1)
        label_offsets = torch.tensor([0, *table_sizes[:-1]], dtype=torch.int64).cumsum(0)
        self.register_buffer("token_offsets", token_offsets, persistent=False)
        self.register_buffer("label_offsets", label_offsets, persistent=False)
        self.token_offsets: Tensor  # [K]
        self.label_offsets: Tensor  # [num_conditions]
        self._init_weights()

    def _init_weights(self) -> None:
        """Normal with standard deviation 0.02, less where layers add up or where it would bias the loss."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            for branch_end in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(branch_end.weight, std=INIT_STD / math.sqrt(2 * self.config.num_layers))
        # The last norm gives vectors of length sqrt(D): logits deviate by 0.02, so the loss begins at ln V.
        nn.init.normal_(self.head.weight, std=INIT_STD / math.sqrt(self.config.dim))

    # ------------------------------------------------------------------------------------------ prediction

    def hidden_states(
        self, tokens: Tensor, labels: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """What the head reads: tokens [B, K, S] and labels as in `logits` to [B, S, D]."""
        batch_size, num_codebooks, num_steps = tokens.shape
        rows = (tokens + self.token_offsets[:, None]).transpose(1, 2).reshape(-1, num_codebooks)
        x = F.embedding_bag(rows, self.token_embedding.weight, mode="sum").view(batch_size, num_steps, -1)
        if self.label_embedding is not None:
            if labels is None:
                labels = tokens.new_full((batch_size, len(self.label_offsets)), HIDDEN)
            x = x + self.label_embedding(labels + self.label_offsets).sum(1, keepdim=True)
        start = cache.length if cache is not None else 0
        rotary = rotary_tables(start, num_steps, self.config.head_dim, x.device)
        for block in self.blocks:
            x = block(x, rotary, cache)
        if cache is not None:
            cache.length += num_steps
        y: Tensor = self.norm(x)
        return y

    def logits(self, tokens: Tensor, labels: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Unnormalised log-probabilities of the next step's tokens: [B, K, S, V].

        The input `tokens` [B, K, S] is the sequence that `pattern.apply` makes, one step late: step 0 holds
        the special token in every codebook (it begins the sequence), step s holds pattern step s - 1. Output
        s predicts pattern step s, which is input step s + 1. What it says about a codebook that has no token
        at that step means nothing.

        `labels` [B, num_conditions] are table rows, 0 for a hidden one; None hides all. With a `cache` the
        tokens are those that follow the ones that it has seen, and it then has seen these too.
        """
        y = self.head(self.hidden_states(tokens, labels, cache))
        return y.unflatten(-1, (self.config.num_codebooks, -1)).transpose(1, 2)  # type: ignore[no-any-return]

    # -------------------------------------------------------------------------------------------- training

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> LMLoss:
        """The loss of codes [B, K, T] under labels [B, num_conditions] (0 or None: hidden).

        Frames that are False in `frame_mask` [B, T] (the padding of a short clip) are neither seen nor
        counted, so a padded clip has exactly the loss of the clip alone.
        """
        config = self.config
        num_frames = codes.shape[2]
        if frame_mask is not None:
            codes = codes.masked_fill(~frame_mask[:, None], config.special)
        sequence = self.pattern.apply(codes, config.special)
        hidden = self.hidden_states(F.pad(sequence[:, :, :-1], (1, 0), value=config.special), labels)

        # One codebook at a time, at the steps where it has a token: against one product for all codebooks and
        # steps this saves a third of the time on a CPU, because the logits stay small enough to be cached.
        steps = self.pattern.steps(num_frames, codes.device)
        weights = self.head.weight.view(config.num_codebooks, config.codebook_size, config.dim).unbind(0)
        sums = []
        for k, weight in enumerate(weights):
            logits = F.linear(hidden.index_select(1, steps[k]), weight).flatten(0, 1)  # [B·T, V]
            targets = codes[:, k].flatten()
            sums.append(
                F.cross_entropy(logits.float(), targets, ignore_index=config.special, reduction="sum")
            )
        num_tokens = (codes[:, 0] != config.special).sum() * config.num_codebooks
        total = torch.stack(sums)  # [K]
        count = num_tokens.clamp(min=1)
        return LMLoss(total.sum() / count, num_tokens, (total * config.num_codebooks / count).detach())

    # ------------------------------------------------------------------------------------------------- hub

    def _save_pretrained(self, save_directory: Path) -> None:
        with atomic_file(save_directory / WEIGHTS_NAME) as partial:
            save_file(self.state_dict(), partial, metadata={"format": "pt"})
        write_json(save_directory / CONFIG_NAME, self.config.to_dict())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card of the bare facts, for a folder or repository that has none."""
        config = self.config
        return ModelCard(
            "---\nlibrary_name: tokkata\npipeline_tag: text-to-audio\ntags: [music-generation]\n---\n"
            f"# Transformer over {config.num_codebooks} codebooks of {config.codebook_size}\n\n"
            f"Width {config.dim}, {config.num_layers} layers, {config.frame_rate:g} frames a second;"
            f" labels: {', '.join(config.vocabulary.names) or 'none'}.\n"
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]  # takes no model_kwargs: config.json has them all
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str = "cpu",
    ) -> Self:
        """Load a model from a local folder or from the Hub, in evaluation mode.

        Raises `UserError` where `config.json` or `model.safetensors` is missing, and names the tensors that
        the weights lack, have too many, or have in another shape.
        """
        where = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "token": token,
            "local_files_only": local_files_only,
        }
        config_file, weights_file = (
            _find_file(str(pretrained_model_name_or_path), name, where)
            for name in (CONFIG_NAME, WEIGHTS_NAME)
        )
        try:
            config = TransformerConfig.from_dict(json.loads(config_file.read_text(encoding="utf-8")))
            weights = load_file(weights_file, device=map_location)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{config_file} is not JSON ({error}): download or save the model again"
            ) from error
        except SafetensorError as error:
            raise UserError(
                f"{weights_file} is damaged ({error}): download or save the model again"
            ) from error
        model = cls(config).to(map_location)
        _check_weights(model.state_dict(), weights, weights_file)
        model.load_state_dict(weights, strict=True)
        return model.eval()


def _find_file(model_id: str, name: str, where: Mapping[str, Any]) -> Path:
    """The local path of a model's file, downloaded where `model_id` is no folder."""
    if Path(model_id).is_dir():
        path = Path(model_id) / name
        if not path.is_file():
            raise UserError(f"{model_id} holds no model: {name} is missing")
        return path
    try:
        return Path(hf_hub_download(model_id, name, **where))
    except (HFValidationError, EntryNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"no model at {model_id!r}: it is neither a folder here nor a repository on the Hub"
            f" from which {name} can be had ({str(error).splitlines()[0]})"
        ) from error


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], file: Path) -> None:
    """Raise `UserError` that names all tensors in which a model and a file of weights differ."""
    reshaped = [name for name in expected if name in found and expected[name].shape != found[name].shape]
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": reshaped,
    }
    texts = [f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names]
    if texts:
        raise UserError(f"{file} does not fit its {CONFIG_NAME}; tensors {'; '.join(texts)}")

"""Language models by name, of whatever family they are.

    lm = load_lm("runs/quickstart/model")          # also runs/quickstart, user/model, facebook/musicgen-small
    codec = codec_of(lm)

They come from a folder or the Hugging Face Hub. A new family is a line in `FAMILIES`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..core.errors import UserError
from ..core.hub_cache import hub_snapshot
from ..core.saved_model import CONFIG_NAME, WEIGHTS_NAME, model_folder, read_config
from ..tokenize.codec import Codec, CodecInfo, load_codec_from_info
from .language_model import LanguageModel
from .step_models.causal_conv import CausalConvLM
from .step_models.rnn import RNNLM
from .step_models.samplernn import SampleRNN
from .step_models.wavenet import WaveNet
from .transformer import TransformerLM

FAMILIES: dict[str, type[LanguageModel]] = {
    family.config_class.kind: family for family in (TransformerLM, WaveNet, SampleRNN, RNNLM, CausalConvLM)
}
"""What `config.json` calls each family, as recipes do, and its class."""

_MUSICGEN = "musicgen"


def load_lm(
    source: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu"
) -> LanguageModel:
    """A language model in evaluation mode.

    Args:
        source: a model's folder, a run's, or a hub id: of a model of Tokkata, or of a MusicGen in the layout
            of `transformers`.
        revision: commit, branch or tag on the Hub; what its cache holds, or else the newest, if not told.
        device: where the weights go.

    Raises `UserError` if there is no model, or none of a family that is known here.
    """
    is_here = Path(source).exists()
    folder = (
        model_folder(Path(source))
        if is_here
        else hub_snapshot(str(source), revision, [(CONFIG_NAME,)], "model").folder
    )
    config = read_config(folder / CONFIG_NAME)
    kind = config.get("kind")
    if kind is None and str(config.get("model_type")).startswith(_MUSICGEN):
        name = str(folder) if is_here else str(source)
        return TransformerLM.from_musicgen(name, revision=revision).to(device)
    if kind not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise UserError(
            f"{source} is no language model that is known here: its {CONFIG_NAME} says kind"
            f" {kind!r}, known are {known} and MusicGen's"
        )
    if not is_here:
        folder = hub_snapshot(str(source), revision, [(CONFIG_NAME, WEIGHTS_NAME)], "model").folder
    return FAMILIES[kind].from_pretrained(folder).to(device)


def codec_of(lm: LanguageModel, device: str | torch.device = "cpu") -> Codec:
    """The codec that turns the model's tokens into audio, as its configuration describes it.

    Raises `UserError` if it describes none, or one that cannot be had any more or has changed since.
    """
    if not lm.config.codec:
        raise UserError(f"this model's {CONFIG_NAME} does not say which codec its tokens are of")
    info = CodecInfo.from_json(lm.config.codec, f"the codec in the model's {CONFIG_NAME}")
    return load_codec_from_info(info, device)

"""Tiny networks with random weights, saved in the hub's layout."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CLAP_WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "slow", "piano", "loud", "drum"]
LIMIT = 14  # tokens that a sentence is cut to by the CLAP

T5_WORDS = ["<pad>", "</s>", "<unk>", "a", "slow", "piano", "loud", "drum", "and", "bass"]


def _save_clap_tokenizer(folder):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(CLAP_WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def save_clap(folder, **audio):
    """A CLAP for windows of 1 s at 4800 Hz: 64 mel bands, 61 spectrogram frames."""
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": len(CLAP_WORDS),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": LIMIT + 2,
            "projection_dim": 12,
        },
        audio_config={
            "window_size": 2,
            "num_mel_bins": 64,
            "spec_size": 64,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "hidden_size": 64,  # eight times the patches' width: it doubles at each of three steps
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "num_hidden_layers": 4,
            "projection_dim": 12,
            **audio,
        },
        projection_dim=12,
    )
    model = ClapModel(config)
    # As it initialises itself, it hardly reacts to its input.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        sampling_rate=4800,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=2300,
        truncation="rand_trunc",
    ).save_pretrained(folder)
    _save_clap_tokenizer(folder)
    return folder


def save_t5(folder, model_class=T5EncoderModel, dim=16, seed=0):
    """A T5 of two layers; its tokenizer ends each text with `</s>`, as the published ones do."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(T5_WORDS), d_model=dim, d_kv=4, d_ff=24, num_layers=2, num_heads=4, dropout_rate=0.1
    )
    model = model_class(config)
    # As it initialises itself, attention hardly tells words apart.
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "shared" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(T5_WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def save_oobleck(folder, channels=2):
    """A VAE of 8 kHz, 400 frames a second of 3 latents, as diffusers saves it."""
    from diffusers import AutoencoderOobleck  # which takes a second

    torch.manual_seed(0)
    model = AutoencoderOobleck(
        encoder_hidden_size=6,  # means and scales of 3 latents
        downsampling_ratios=[4, 5],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=3,
        audio_channels=channels,
        sampling_rate=8000,
    )
    model.save_pretrained(folder)
    return folder

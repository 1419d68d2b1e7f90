"""A tiny random audio classifier in the hub's layout."""

import torch
import transformers

RATE = 800


def save_classifier(folder, labels=("organ", "bass", "keys"), rate=RATE):
    """A HuBERT with a head for `labels`, for audio at `rate` Hz; returns the model that was saved."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[4, 4],
        conv_kernel=[10, 4],
        conv_stride=[5, 4],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        classifier_proj_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = transformers.HubertForSequenceClassification(config).eval()
    for parameter in model.parameters():  # as it initialises itself, it hardly reacts to its input
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=rate, do_normalize=False, return_attention_mask=False
    ).save_pretrained(folder)
    return model

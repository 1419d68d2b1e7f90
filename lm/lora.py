"""Low-rank adapters (LoRA, arXiv:2106.09685) by `peft`: few numbers are trained beside frozen weights.

Each adapted matrix W [m, n] becomes W + alpha / rank · B A (sec. 4.1), where A is [rank, n] and B, [m, rank],
begins as zeros, so that training begins from the very model. Only A and B have gradients, averages and an
optimizer's state. What is saved is the whole model, adapters merged in, and the adapters alone in peft's
layout beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..core.schema_models import Lora
from .transformer import TransformerLM

ADAPTER_FOLDER = "adapter"
"""Where in a model's folder the adapters alone are."""

_NAME = "default"  # what peft calls the only adapter of a model
_BASE = ".base_layer"  # where peft keeps the matrix that an adapter belongs to


def add_adapters(lm: TransformerLM, settings: Lora, source: str) -> None:
    """Freeze `lm`, which comes from `source`, and give the matrices of its blocks adapters."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"blocks\.\d+\..*\.({'|'.join(settings.targets)})",
        base_model_name_or_path=source,
    )
    inject_adapter_in_model(config, lm)


def has_adapters(lm: TransformerLM) -> bool:
    """Whether `add_adapters` was here."""
    return hasattr(lm, "peft_config")


def merged(lm: TransformerLM) -> TransformerLM:
    """A model without adapters that computes the same, in evaluation mode; `lm` is left as it is."""
    state = lm.state_dict()
    whole = {name.replace(_BASE, ""): t for name, t in state.items() if ".lora_" not in name}
    for name, layer in _adapted(lm).items():
        whole[f"{name}.weight"] = whole[f"{name}.weight"] + layer.get_delta_weight(_NAME)
    model = TransformerLM(lm.config)
    model.load_state_dict(whole, strict=True)
    return model.eval()


def save_adapters(lm: TransformerLM, folder: Path) -> None:
    """Write the adapters as `PeftModel.from_pretrained(source_model, folder)` reads them.

    Nothing is written where conditions were added to the source: then adapters are not all that was trained.
    """
    from peft import get_peft_model_state_dict

    if any(parameter.requires_grad for parameter in lm.conditioner.parameters()):
        return
    folder.mkdir()
    tensors = get_peft_model_state_dict(lm)
    # As the names are within a PeftModel, which is what peft loads them into.
    named = {f"base_model.model.{name}": t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: Any = lm.peft_config[_NAME]  # type: ignore[index]
    config.save_pretrained(folder)


def _adapted(lm: TransformerLM) -> dict[str, Any]:
    """The layers with adapters, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in lm.named_modules() if isinstance(module, LoraLayer)}

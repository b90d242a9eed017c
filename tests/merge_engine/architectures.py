"""Tiny random models of many architectures: to show that merging needs no table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
ENCODER: dict[str, Any] = {**_SIZES, "vocab_size": 64, "max_position_embeddings": 64}
DECODER: dict[str, Any] = {**ENCODER, "num_key_value_heads": 2}
VISION: dict[str, Any] = {**_SIZES, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16}
BLOCKS: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
OPT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 64, "word_embed_proj_dim": 32, "pad_token_id": 1,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A class of transformers and the settings of a tiny instance.

    ``ranges``: runs of the main stack that make a deeper model (None: its layers cannot be rearranged);
    ``module``: the name under which a recipe has to speak of them, where the model has no main stack.
    """

    config: str
    model: str
    settings: Mapping[str, Any]
    ranges: tuple[tuple[int, int], ...] | None = ((0, 2), (1, 2))
    module: str | None = None

    def build(self, seed: int) -> Any:
        """A model whose every parameter is random."""
        import transformers

        torch.manual_seed(seed)
        model = getattr(transformers, self.model)(getattr(transformers, self.config)(**self.settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model.eval()

    def load(self, folder: Path) -> tuple[Any, Mapping[str, Any]]:
        """The model in a folder, and what transformers says about the loading."""
        import transformers

        model, info = getattr(transformers, self.model).from_pretrained(folder, output_loading_info=True)
        return model, info


def _decoder(name: str, *, config: str | None = None, **more: Any) -> Architecture:
    return Architecture(
        config=config or f"{name}Config", model=f"{name}ForCausalLM", settings={**DECODER, **more}
    )


def _experts(name: str, **more: Any) -> Architecture:
    settings = {**DECODER, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **more}
    return Architecture(config=f"{name}Config", model=f"{name}ForCausalLM", settings=settings)


def _masked(name: str, **more: Any) -> Architecture:
    return Architecture(
        config=f"{name}Config", model=f"{name}ForMaskedLM", settings={**ENCODER, "pad_token_id": 0, **more}
    )


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _decoder("Llama"),
    "qwen2": _decoder("Qwen2", tie_word_embeddings=True),
    "qwen3": _decoder("Qwen3", head_dim=8),
    "gemma2": _decoder("Gemma2", head_dim=8),
    "gemma3": _decoder("Gemma3", config="Gemma3TextConfig", head_dim=8),
    "phi3": _decoder("Phi3", pad_token_id=0),
    "olmo2": _decoder("Olmo2"),
    "cohere": _decoder("Cohere"),
    "starcoder2": _decoder("Starcoder2"),
    "gpt2": Architecture(
        config="GPT2Config",
        model="GPT2LMHeadModel",
        settings={"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "gpt_neox": Architecture(config="GPTNeoXConfig", model="GPTNeoXForCausalLM", settings=ENCODER),
    "opt": Architecture(
        config="OPTConfig", model="OPTForCausalLM", settings=OPT, ranges=((0, 3), (1, 4))
    ),
    "bloom": Architecture(
        config="BloomConfig",
        model="BloomForCausalLM",
        settings={"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "falcon": Architecture(
        config="FalconConfig", model="FalconForCausalLM", settings={**BLOCKS, "num_attention_heads": 4}
    ),
    "mixtral": _decoder("Mixtral", num_local_experts=4),
    "qwen3_moe": _experts("Qwen3Moe", head_dim=8, num_experts=4),
    "gpt_oss": _experts("GptOss", head_dim=8, num_local_experts=4),
    "deepseek_v3": _experts(
        "DeepseekV3", num_key_value_heads=4, n_routed_experts=4, n_shared_experts=1, n_group=2, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    "mamba": Architecture(
        config="MambaConfig", model="MambaForCausalLM", settings={**BLOCKS, "state_size": 4}
    ),
    "mamba2": Architecture(
        config="Mamba2Config",
        model="Mamba2ForCausalLM",
        settings={**BLOCKS, "state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
    "rwkv": Architecture(
        config="RwkvConfig",
        model="RwkvForCausalLM",
        settings={**BLOCKS, "attention_hidden_size": 32, "intermediate_size": 64},
    ),
    "recurrent_gemma": Architecture(
        config="RecurrentGemmaConfig",
        model="RecurrentGemmaForCausalLM",
        settings={**DECODER, "num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32},
        ranges=((0, 3), (0, 3)),
    ),
    "jamba": Architecture(
        config="JambaConfig",
        model="JambaForCausalLM",
        settings={
            **DECODER, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
            "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4,
            "mamba_dt_rank": 4, "use_mamba_kernels": False,
        },
        ranges=((0, 4), (2, 4)),
    ),
    "bamba": Architecture(
        config="BambaConfig",
        model="BambaForCausalLM",
        settings={
            **DECODER, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 4,
            "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1,
        },
        ranges=((0, 2), (1, 3)),
    ),
    "qwen3_next": Architecture(
        config="Qwen3NextConfig",
        model="Qwen3NextForCausalLM",
        settings={
            **DECODER, "head_dim": 8, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
        ranges=((0, 4), (3, 4)),
    ),
    "bert": _masked("Bert"),
    "distilbert": Architecture(
        config="DistilBertConfig",
        model="DistilBertForMaskedLM",
        settings={"vocab_size": 64, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    ),
    "albert": Architecture(
        config="AlbertConfig",
        model="AlbertForMaskedLM",
        settings={**ENCODER, "embedding_size": 16},
        ranges=None,  # all layers share their weights
    ),
    "modernbert": _masked("ModernBert"),
    "vit": Architecture(
        config="ViTConfig", model="ViTForImageClassification", settings=VISION, ranges=((0, 3), (1, 3))
    ),
    "swin": Architecture(
        config="SwinConfig",
        model="SwinForImageClassification",
        settings={"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2],
                  "window_size": 4},
        ranges=None,  # its stages differ in width
    ),
    "wav2vec2": Architecture(
        config="Wav2Vec2Config",
        model="Wav2Vec2ForCTC",
        settings={
            **_SIZES, "vocab_size": 32, "conv_dim": (16, 16), "conv_stride": (2, 2), "conv_kernel": (3, 3),
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
        },
    ),
    "t5": Architecture(
        config="T5Config",
        model="T5ForConditionalGeneration",
        settings={"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                  "num_decoder_layers": 3, "num_heads": 4},
        ranges=((0, 3), (1, 3)),
        module="decoder",
    ),
    "bart": Architecture(
        config="BartConfig",
        model="BartForConditionalGeneration",
        settings={**SEQ2SEQ, "max_position_embeddings": 64},
        ranges=((0, 2), (1, 2)),
        module="encoder",
    ),
    "whisper": Architecture(
        config="WhisperConfig",
        model="WhisperForConditionalGeneration",
        settings={
            **SEQ2SEQ, "max_source_positions": 64, "max_target_positions": 64, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        },
        ranges=((0, 3), (1, 3)),
        module="decoder",
    ),
    "clip": Architecture(
        config="CLIPConfig",
        model="CLIPModel",
        settings={
            "text_config": {**ENCODER, "projection_dim": 16},
            "vision_config": {**VISION, "projection_dim": 16},
            "projection_dim": 16,
        },
    ),
    "llava": Architecture(
        config="LlavaConfig",
        model="LlavaForConditionalGeneration",
        settings={
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "text_config": {**DECODER, "model_type": "llama"},
            "image_token_index": 5,
        },
    ),
    "qwen2_vl": Architecture(
        config="Qwen2VLConfig",
        model="Qwen2VLForConditionalGeneration",
        settings={
            "text_config": {**DECODER, "rope_parameters": MROPE},
            "vision_config": {
                "depth": 3, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2,
                "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
        },
    ),
    "qwen3_vl": Architecture(
        config="Qwen3VLConfig",
        model="Qwen3VLForConditionalGeneration",
        settings={
            "text_config": {**DECODER, "head_dim": 8, "rope_parameters": MROPE},
            "vision_config": {
                "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 4,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
                "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
            },
        },
    ),
    "gemma3_vl": Architecture(
        config="Gemma3Config",
        model="Gemma3ForConditionalGeneration",
        settings={
            "vision_config": {**VISION, "vision_use_head": False},
            "text_config": {**DECODER, "head_dim": 8},
            "mm_tokens_per_image": 4,
        },
    ),
    "blip2": Architecture(
        config="Blip2Config",
        model="Blip2ForConditionalGeneration",
        settings={
            "vision_config": VISION,
            "qformer_config": {**ENCODER, "encoder_hidden_size": 32},
            "text_config": {**OPT, "model_type": "opt"},
        },
        ranges=((0, 3), (1, 4)),
    ),
}  # fmt: skip


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor in the files of a model folder."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found

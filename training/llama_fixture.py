"""Small random checkpoints and their logits, made by Hugging Face's `transformers`: what our forward passes must equal.

`python training/llama_fixture.py OUT` writes one folder a checkpoint: config.json, the weights in float32 and
expected.safetensors (tokens [2, 40] int64, logits [2, 40, vocabulary] computed in float64).
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MAMBA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    "time_step_rank": 4,
    "initializer_range": 0.2,
}
CHECKPOINTS = {
    "gqa": (LlamaForCausalLM, LlamaConfig(**DECODER, tie_word_embeddings=False, rms_norm_eps=1e-5), "5GB"),
    "tied": (
        LlamaForCausalLM,
        LlamaConfig(**DECODER, tie_word_embeddings=True, head_dim=8, rope_parameters=LLAMA3_ROPE),
        "5GB",
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**DECODER, tie_word_embeddings=False), "40KB"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**DECODER, tie_word_embeddings=True, head_dim=16), "5GB"),
    "mistral": (MistralForCausalLM, MistralConfig(**DECODER, tie_word_embeddings=False, sliding_window=None), "5GB"),
    "mamba": (MambaForCausalLM, MambaConfig(**MAMBA, use_mambapy=False), "5GB"),
}


def randomise(model):
    """Biases and norms start as zeros and ones, which would hide a mistake in reading them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


def write(folder, build, config, shard):
    torch.manual_seed(5)
    model = build(config).float().eval()
    randomise(model)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, max_shard_size=shard)
    tokens = torch.randint(config.vocab_size, (2, 40))
    with torch.no_grad():
        logits = model.double()(tokens).logits
    save_file({"tokens": tokens, "logits": logits.contiguous()}, folder / "expected.safetensors")
    print(folder, logits.dtype, float(logits.std()), [(p.name, p.stat().st_size) for p in sorted(folder.iterdir())])


if __name__ == "__main__":
    for name, checkpoint in CHECKPOINTS.items():
        write(Path(sys.argv[1]) / name, *checkpoint)

"""Train PyLM, a byte-level language model of the Llama architecture, on the Python standard library's sources.

The module tree gives the parameters the names of Hugging Face's Llama, so that its file reads like any other.
"""

import argparse

import torch
from loop import arguments, train
from torch import nn
from torch.nn import functional as F

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
WIDTH, HEADS, SIZE = CONFIG["hidden_size"], CONFIG["num_attention_heads"], CONFIG["head_dim"]


def linear(inputs, outputs, scale=1.0):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02 * scale)
    return layer


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (linear(WIDTH, WIDTH) for _ in range(3))
        self.o_proj = linear(WIDTH, WIDTH, scale)

    def forward(self, x, cos, sin):
        q, k, v = (layer(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for layer in self.readers())
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def readers(self):
        return self.q_proj, self.k_proj, self.v_proj


class Mlp(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.gate_proj, self.up_proj = (linear(WIDTH, CONFIG["intermediate_size"]) for _ in range(2))
        self.down_proj = linear(CONFIG["intermediate_size"], WIDTH, scale)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, scale, dropout):
        super().__init__()
        self.self_attn, self.mlp, self.dropout = Attention(scale), Mlp(scale), nn.Dropout(dropout)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(WIDTH, CONFIG["rms_norm_eps"]) for _ in "12")

    def forward(self, x, cos, sin):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        layers = CONFIG["num_hidden_layers"]
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], WIDTH)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer((2 * layers) ** -0.5, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH, CONFIG["rms_norm_eps"])

    def forward(self, tokens, cos, sin):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class PyLm(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.model = Decoder(dropout)
        self.lm_head = linear(WIDTH, CONFIG["vocab_size"])
        angles = torch.outer(torch.arange(CONFIG["max_position_embeddings"]), rope_frequencies())
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, tokens):
        length = tokens.shape[1]
        return self.lm_head(self.model(tokens, self.cos[:length], self.sin[:length]))


def rope_frequencies():
    return CONFIG["rope_theta"] ** -(torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)


if __name__ == "__main__":
    options = arguments(argparse.ArgumentParser(description=__doc__))
    torch.manual_seed(options.seed)
    train("pylm", PyLm(options.dropout).cuda(), CONFIG, options)

"""Train a small byte-level Mamba on the Python standard library's sources.

Mamba-1 (Gu and Dao, arXiv 2312.00752, section 3.4). The module tree gives the parameters the names of Hugging Face's
Mamba. The selective scan is a Triton kernel that keeps every state; `--check` compares it with a plain loop.
"""

import argparse
import math

import torch
import triton
import triton.language as tl
from loop import arguments, train
from torch import nn
from torch.nn import functional as F

CONFIG = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "expand": 2,
    "num_hidden_layers": 6,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 16,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "use_bias": False,
    "use_conv_bias": True,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}
WIDTH, INNER, STATE, RANK = (CONFIG[k] for k in ("hidden_size", "intermediate_size", "state_size", "time_step_rank"))
BLOCK = 64
"""Channels of one program of the kernels."""


@triton.jit
def scan_forward_kernel(u, dt, a, b, c, y, states, L, D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    row = tl.program_id(0).to(tl.int64) * L
    a_tile = tl.load(a + d[:, None] * N + n[None, :])
    h = tl.zeros((BLOCK, N), tl.float32)
    u_next, dt_next = tl.load(u + row * D + d), tl.load(dt + row * D + d)
    b_next, c_next = tl.load(b + row * N + n), tl.load(c + row * N + n)
    for t in range(L):
        u_t, dt_t, b_t, c_t = u_next, dt_next, b_next, c_next
        ahead = row + tl.minimum(t + 1, L - 1)
        u_next, dt_next = tl.load(u + ahead * D + d), tl.load(dt + ahead * D + d)
        b_next, c_next = tl.load(b + ahead * N + n), tl.load(c + ahead * N + n)
        h = tl.exp(dt_t[:, None] * a_tile) * h + (dt_t * u_t)[:, None] * b_t[None, :]
        tl.store(states + (row + t) * D * N + d[:, None] * N + n[None, :], h)
        tl.store(y + (row + t) * D + d, tl.sum(h * c_t[None, :], 1))


@triton.jit
def scan_backward_kernel(
    u, dt, a, b, c, states, dy, du, ddt, da, db, dc, L, B, D: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr
):
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    row = tl.program_id(0).to(tl.int64) * L
    part = (tl.program_id(1).to(tl.int64) * B + tl.program_id(0)) * L
    tile = d[:, None] * N + n[None, :]
    a_tile = tl.load(a + tile)
    carry = tl.zeros((BLOCK, N), tl.float32)
    sum_a = tl.zeros((BLOCK, N), tl.float32)
    h = tl.load(states + (row + L - 1) * D * N + tile)
    for back in range(L):
        t = L - 1 - back
        at = row + t
        u_t, dt_t, dy_t = tl.load(u + at * D + d), tl.load(dt + at * D + d), tl.load(dy + at * D + d)
        b_t, c_t = tl.load(b + at * N + n), tl.load(c + at * N + n)
        before = tl.load(states + (at - 1) * D * N + tile, mask=(t > 0) & (tile >= 0), other=0.0)
        decay = tl.exp(dt_t[:, None] * a_tile)
        g = carry + dy_t[:, None] * c_t[None, :]
        flow = g * decay * before
        into = tl.sum(g * b_t[None, :], 1)
        tl.store(dc + (part + t) * N + n, tl.sum(dy_t[:, None] * h, 0))
        tl.store(db + (part + t) * N + n, tl.sum(g * (dt_t * u_t)[:, None], 0))
        tl.store(du + at * D + d, dt_t * into)
        tl.store(ddt + at * D + d, tl.sum(flow * a_tile, 1) + u_t * into)
        sum_a += flow * dt_t[:, None]
        carry = decay * g
        h = before
    tl.store(da + tl.program_id(0).to(tl.int64) * D * N + tile, sum_a)


@torch.library.custom_op("hwsim::scan", mutates_args=())
def scan(
    u: torch.Tensor, dt: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """y [B, L, D] and every state [B, L, D, N] of h_t = exp(dt A) h_(t-1) + dt B u, y_t = C h_t; all in float32."""
    batch, length, channels = u.shape
    y, states = torch.empty_like(u), u.new_empty(batch, length, channels, a.shape[1])
    grid = (batch, channels // min(BLOCK, channels))
    scan_forward_kernel[grid](u, dt, a, b, c, y, states, length, channels, a.shape[1], min(BLOCK, channels))
    return y, states


@scan.register_fake
def _(u, _dt, a, _b, _c):
    return torch.empty_like(u), u.new_empty(*u.shape, a.shape[1])


@torch.library.custom_op("hwsim::scan_backward", mutates_args=())
def scan_backward(
    u: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    states: torch.Tensor,
    dy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of u, dt, a, b and c."""
    batch, length, channels = u.shape
    n, block = a.shape[1], min(BLOCK, channels)
    du, ddt, da = torch.empty_like(u), torch.empty_like(u), u.new_empty(batch, channels, n)
    db, dc = (u.new_empty(channels // block, batch, length, n) for _ in range(2))
    scan_backward_kernel[(batch, channels // block)](
        u, dt, a, b, c, states, dy, du, ddt, da, db, dc, length, batch, channels, n, block
    )
    return du, ddt, da.sum(0), db.sum(0), dc.sum(0)


@scan_backward.register_fake
def _(u, dt, a, b, c, _states, _dy):
    return tuple(torch.empty_like(x) for x in (u, dt, a, b, c))


def keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def backward(ctx, dy, _states):
    return scan_backward(*ctx.saved_tensors, dy.contiguous())


scan.register_autograd(backward, setup_context=keep)


def plain_scan(u, dt, a, b, c):
    h, outputs = torch.zeros(u.shape[0], u.shape[2], a.shape[1], device=u.device, dtype=u.dtype), []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * a) * h + (dt * u)[:, t, :, None] * b[:, t, None]
        outputs.append((h * c[:, t, None]).sum(-1))
    return torch.stack(outputs, 1)


def check():
    """The kernel and its gradients against the plain loop in float64, within 1e-4 of the largest value."""
    shapes = ((2, 37, 64), (2, 37, 64), (64, STATE), (2, 37, STATE), (2, 37, STATE))
    inputs = [torch.randn(shape, device="cuda", dtype=torch.float64) for shape in shapes]
    inputs[1], inputs[2] = F.softplus(inputs[1]), -torch.exp(inputs[2])
    exact = [x.clone().requires_grad_() for x in inputs]
    ours = [x.float().requires_grad_() for x in inputs]
    weights = torch.randn(2, 37, 64, device="cuda", dtype=torch.float64)
    wanted, got = plain_scan(*exact), scan(*ours)[0]
    (wanted * weights).sum().backward()
    (got * weights.float()).sum().backward()
    for one, two in ((wanted, got), *((x.grad, y.grad) for x, y in zip(exact, ours, strict=True))):
        error = float(((one - two).abs().max() / one.abs().max()).detach())
        assert error < 1e-4, error
    print("scan: the kernel and its gradients equal the plain loop", flush=True)


class Mixer(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv1d = nn.Conv1d(INNER, INNER, CONFIG["conv_kernel"], groups=INNER, padding=CONFIG["conv_kernel"] - 1)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(RANK, INNER)
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)
        self.A_log = nn.Parameter(torch.arange(1, STATE + 1).float().log().repeat(INNER, 1))
        self.D = nn.Parameter(torch.ones(INNER))
        self.A_log.no_decay = True
        for layer, std in ((self.in_proj, 0.02), (self.out_proj, 0.02 * scale)):
            nn.init.normal_(layer.weight, std=std)
        step = torch.exp(torch.rand(INNER) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
        with torch.no_grad():
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.convolved(x))
        dt, b, c = self.x_proj(x).split((RANK, STATE, STATE), dim=-1)
        dt = F.softplus(self.dt_proj(dt).float())
        u, b, c = (t.float().contiguous() for t in (x, b, c))
        y = scan(u, dt.contiguous(), -torch.exp(self.A_log.float()), b, c)[0] + self.D * u
        return self.out_proj(y * F.silu(z.float()))

    def convolved(self, x):
        """The causal convolution as a sum of shifted products, which the compiler fuses."""
        taps, length = self.conv1d.weight[:, 0].unbind(1), x.shape[1]
        padded = F.pad(x, (0, 0, len(taps) - 1, 0))
        return sum(tap * padded[:, k : k + length] for k, tap in enumerate(taps)) + self.conv1d.bias


class Layer(nn.Module):
    def __init__(self, scale, dropout):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.RMSNorm(WIDTH, CONFIG["layer_norm_epsilon"])
        self.mixer = Mixer(scale)

    def forward(self, x):
        return x + self.dropout(self.mixer(self.norm(x)))


class Backbone(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        layers = CONFIG["num_hidden_layers"]
        self.embeddings = nn.Embedding(CONFIG["vocab_size"], WIDTH)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(layers**-0.5, dropout) for _ in range(layers))
        self.norm_f = nn.RMSNorm(WIDTH, CONFIG["layer_norm_epsilon"])

    def forward(self, tokens):
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm_f(x)


class Mamba(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.backbone = Backbone(dropout)

    def forward(self, tokens):
        return F.linear(self.backbone(tokens), self.backbone.embeddings.weight)


if __name__ == "__main__":
    options = arguments(argparse.ArgumentParser(description=__doc__))
    torch.manual_seed(options.seed)
    check()
    train("mamba", Mamba(options.dropout).cuda(), CONFIG, options)

"""What both trainings share: data on the GPU, a schedule paced by the clock, held-out loss, safetensors in float16."""

import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from hwsim.networks.corpus import heldout_text, identity, mentions, training_files

CONTEXT = 1024
HELD_OUT_BYTES = 65536
VALIDATION = ("configparser", "functools", "gettext", "plistlib", "pprint", "sched", "shelve", "smtplib", "tarfile")
"""Not trained on either: dropout and the share of the library were chosen on these, never on the held-out modules."""


def arguments(parser):
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the log")
    parser.add_argument("--stdlib", type=Path, help="folder of a Python library; the running Python's otherwise")
    parser.add_argument("--minutes", type=float, required=True, help="wall clock of the whole training")
    parser.add_argument("--batch", type=int, default=32, help="windows of 1024 bytes in a step")
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, required=True, help="on what each block adds to the residual stream")
    parser.add_argument("--library", type=float, required=True, help="share of windows from the library, not its tests")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def train(name, model, config, options):
    """Train `model` (tokens [B, T] -> logits) for `options.minutes`; writes <name>.safetensors and <name>.json."""
    start = time.time()
    torch.set_float32_matmul_precision("high")
    library, rest, validation = (on_gpu(text) for text in texts(options.stdlib))
    log = described(model, options) | {"library_bytes": len(library), "other_bytes": len(rest), "curve": []}
    for step, begin, loss in steps(model, (library, rest), options, start + 60 * options.minutes - 8):
        note(log, name, step, begin, loss, bits_per_byte(model, windows(validation)), options)
        write(options.out, name, model, config, log)
    held_out = heldout_text(HELD_OUT_BYTES, options.stdlib)
    log["held_out"] = {
        "sha256": identity(held_out)["sha256"],
        "bits_per_byte": bits_per_byte(rounded(model), windows(on_gpu(held_out))),
    }
    log["seconds"] = time.time() - start
    write(options.out, name, model, config, log)
    print(name, "held-out bits per byte, weights in float16:", log["held_out"]["bits_per_byte"], flush=True)


def steps(model, data, options, end):
    """Train until `end`; gives (steps done, start, mean loss in nats) now and then and when done.

    The schedule follows the clock, from after the compilation on.
    """
    generator = torch.Generator(device="cuda").manual_seed(options.seed)
    optimizer, compiled = make_optimizer(model, options.peak), torch.compile(model)
    loss_of(compiled, sample(data, options, generator)).backward()
    optimizer.zero_grad()
    torch.cuda.synchronize()
    begin, step, mean = time.time(), 0, torch.zeros((), device="cuda")
    report = begin + 5
    while (now := time.time()) < end:
        set_rate(optimizer, options.peak * schedule((now - begin) / (end - begin)))
        loss = loss_of(compiled, sample(data, options, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean, step = mean.lerp(loss.detach(), 0.02), step + 1
        if step % 20 == 0:
            torch.cuda.synchronize()
        if time.time() > report:
            yield step, begin, float(mean)
            report = time.time() + 45
    yield step, begin, float(mean)


def described(model, options):
    """What is to be known of a training besides its curve."""
    log = {key: getattr(options, key) for key in ("seed", "minutes", "batch", "peak", "dropout", "library")}
    log["parameters"] = sum(p.numel() for p in model.parameters())
    return log | {"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}


def texts(stdlib):
    """The library's text, that of its tests and tables, and the validation text; a NUL byte after each file."""
    parts = {"library": [], "rest": [], "validation": [], "unused": []}
    for path, text in training_files(stdlib).items():
        parts[part_of(path)].append(text + b"\0")
    return tuple(b"".join(parts[part]) for part in ("library", "rest", "validation"))


def part_of(path):
    """Validation is on library modules, as the held-out text is; their tests are not trained on."""
    side = "test" in path or path.startswith(("encodings/", "pydoc_data/"))
    if mentions(path, VALIDATION):
        return "unused" if side else "validation"
    return "rest" if side else "library"


def note(log, name, step, begin, loss, validation, options):
    seconds, seen = time.time() - begin, step * options.batch * CONTEXT
    share = library_windows(options) / options.batch
    log["epochs_of_library"] = share * seen / log["library_bytes"]
    log["epochs_of_others"] = (1 - share) * seen / log["other_bytes"]
    log["curve"].append({"s": round(seconds), "train": loss / math.log(2), "validation": validation})
    print(
        name,
        step,
        f"{seen / seconds:.3g} bytes/s",
        f"{log['epochs_of_library']:.2f} epochs",
        log["curve"][-1],
        flush=True,
    )


def on_gpu(text):
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).cuda()


def windows(text):
    return text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT).long()


def sample(data, options, generator):
    """Windows of CONTEXT + 1 bytes, the first of them from the library."""
    library = library_windows(options)
    parts = [pick(text, count, generator) for text, count in zip(data, (library, options.batch - library), strict=True)]
    return torch.cat(parts).long()


def library_windows(options):
    return round(options.batch * options.library)


def pick(text, count, generator):
    starts = torch.randint(len(text) - CONTEXT, (count, 1), device="cuda", generator=generator)
    return text[starts + torch.arange(CONTEXT + 1, device="cuda")]


def loss_of(model, tokens):
    """Mean cross entropy in nats of every byte but the first of each window."""
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(tokens[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model, tokens):
    """In float32, without autocast or dropout."""
    model.eval()
    losses = [
        torch.nn.functional.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        for part in tokens.split(16)
    ]
    sizes = torch.tensor([len(part) for part in tokens.split(16)], device="cuda")
    model.train()
    return float((torch.stack(losses) * sizes).sum() / sizes.sum() / math.log(2))


def rounded(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def make_optimizer(model, peak):
    """AdamW; only matrices decay. The rate is a tensor, so that the fused step reads it without a wait."""
    matrices = [p for p in model.parameters() if p.ndim >= 2 and not getattr(p, "no_decay", False)]
    others = [p for p in model.parameters() if p.ndim < 2 or getattr(p, "no_decay", False)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    for group in groups:
        group["lr"] = torch.tensor(peak, device="cuda")
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


def schedule(part):
    """Share of the peak rate after `part` of the time: linear warm-up, then a cosine to 1 %."""
    return part / 0.02 if part < 0.02 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (part - 0.02) / 0.98))


def write(out, name, model, config, log):
    """Whole files or none: the machine can be taken away at any time."""
    out.mkdir(parents=True, exist_ok=True)
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    temporary = out / f"{name}.tmp"
    save_file(state, temporary, metadata={"format": "pt", "config": json.dumps(config)})
    temporary.replace(out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(log, indent=1))

"""Makes the twin of a model, small and of random weights, and writes what Transformers computes of it.

    python builder/twin_model/random_weights.py --source DIR --twin DIR --out DIR [--full-depth] [--seed N]

A script, not a stage: it runs in the converter's Python, which has torch and transformers (4.57 to 5.x) and may have
neither numpy of our version nor this package. Of the source it reads config.json alone. It runs no code that came with
the model, and has no use for a network.

`--twin` gets config.json, shrunken but otherwise as it came (the fields that Transformers drops or renames are what
the converter has to understand in the real file), and model.safetensors. Then the line `weights` is printed, so that
the converter can start; `--out` gets prompts.json, facts.json, hf-<i>.npy (float32, one row for each position) and
hf-layers-<i>.npz (the same of each layer's output).

Every weight is drawn so that it matters: norms are not 1, biases not 0, scores of attention and of routers spread.

Exit codes: 0; 3, there is no twin of this model, and the last line says why; 4, torch or transformers is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

if not __package__:  # as a script it finds only what is beside it
    sys.path.append(str(Path(__file__).parents[2]))

from builder.twin_model.config_keys import config_key
from builder.twin_model.shrink import shrink_to_twin

NO_TWIN: Final = 3
LACKS_PACKAGE: Final = 4
WEIGHTS_WRITTEN: Final = "weights"
_SHORT_TOKENS: Final = 24  # within every window and context
_EDGE: Final = 4  # positions on either side of a limit
_SEQUENCES: Final = 24  # texts that a classifier scores
_SPREAD: Final = 24  # further positions of the long prompt
_GAIN: Final = 1.2  # of a matrix: so large that attention tells its keys apart
_NORM_SPREAD: Final = 0.25
_SMALL: Final = 0.1
_MAX_REASON: Final = 400


class NoTwin(Exception):
    """The model has no twin; the message says why."""


def main() -> int:
    """Make the twin; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make a small model of random weights, and compute its logits.")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--twin", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full-depth", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    _hide_twin_folder()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:  # what a single model needs beyond these (timm) is a reason of NoTwin
        print(f"the converter's Python lacks a package: {error}")
        return LACKS_PACKAGE
    try:
        _make_twin(args)
    except NoTwin as error:
        print(error)
        return NO_TWIN
    return 0


def _hide_twin_folder() -> None:
    """Python puts a script's folder first; a library that imports `compare` must not find ours."""
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != own]


def _make_twin(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    raw = json.loads((args.source / "config.json").read_bytes())
    small = shrink_to_twin(raw, _twin_transformers_config(args.source), args.full_depth)
    config_path = args.twin / "config.json"
    config_path.write_text(json.dumps(small.config, allow_nan=False))
    model = _build_twin_model(args.twin, small.config)
    _refuse_unread_width(model, small.config)
    randomize_twin(model, args.seed)
    _save_twin_model(model, args.twin)
    config_path.write_text(json.dumps(small.config, allow_nan=False))  # Transformers has written its own
    print(WEIGHTS_WRITTEN, flush=True)
    prompts = _twin_prompts(small, model, args.seed)
    (args.out / "prompts.json").write_text(json.dumps(prompts, allow_nan=False))
    _write_logits(model, prompts, args.out, small.depth)
    facts = {
        "class": type(model).__name__, "compared": _twin_output_kind(prompts[0]),
        "depth": small.depth, "real_depth": small.real_depth, "window": small.window,
        "rope_context": small.rope_context, "prompt_tokens": small.prompt_tokens,
    }  # fmt: skip
    (args.out / "facts.json").write_text(json.dumps(facts, allow_nan=False))


def _twin_output_kind(prompt: dict[str, Any]) -> str:
    return "score" if "sequences" in prompt else "embedding" if prompt["embeddings"] else "logit"


def _twin_error_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]


def _twin_transformers_config(source: Path) -> dict[str, Any]:
    """config.json as Transformers completes it."""
    from transformers import AutoConfig

    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(
            str(source), trust_remote_code=False, local_files_only=True
        ).to_dict()
    except Exception as error:  # transformers raises whatever the file leads it to
        raise NoTwin(f"Transformers does not read config.json: {_twin_error_line(error)}") from error
    return found


def _build_twin_model(folder: Path, config: dict[str, Any]) -> Any:
    """The model of this config, of the class that it names."""
    import torch
    import transformers

    name = (config.get("architectures") or [""])[0]
    kind = getattr(transformers, name, None) or _twin_class_spelt_otherwise(name)
    if kind is None:
        raise NoTwin(f"Transformers has no class {name}; it comes with the model as code, which is never run")
    try:
        settings = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        settings._attn_implementation = "eager"  # noqa: SLF001  (its public name is an argument of other ways)
        return kind(settings).to(torch.float32).eval()
    except Exception as error:
        raise NoTwin(f"Transformers does not build it small: {_twin_error_line(error)}") from error


def _refuse_unread_width(model: Any, config: dict[str, Any]) -> None:
    """Refuse a class that has other names for its sizes than config.json (the one of a repo's own code, `n_embd` in
    nomic_bert): it takes its defaults for them.
    """
    name = config_key(config, "hidden")
    if name and not any(config[name] in weight.shape for weight in model.parameters()):
        raise NoTwin(f"Transformers' class {type(model).__name__} does not read {name} of config.json")


def _twin_class_spelt_otherwise(name: str) -> Any:
    """Transformers' class whose name has other capitals than in the model's own code, such as MPTForCausalLM."""
    import transformers

    same = (known for known in dir(transformers) if known.lower() == name.lower())
    return getattr(transformers, next(same, ""), None) if name else None


# ---- weights -----------------------------------------------------------------------------------------


def randomize_twin(model: Any, seed: int) -> None:
    """Draw every weight anew, by what it is; those that share memory once."""
    import torch

    random = torch.Generator().manual_seed(seed)
    owner = {f"{path}.{name}".lstrip("."): module for path, module in model.named_modules()
             for name, _ in module.named_parameters(recurse=False)}  # fmt: skip
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        weight.copy_(_drawn_twin_weight(weight, noise, type(owner[name]).__name__, name))
        if "T5" in type(model).__name__ and name.endswith(".q.weight"):
            weight.mul_(model.config.d_kv**-0.5)  # its scores have no scale but that of the weights
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:  # what routers add to their scores
            buffer.copy_(_SMALL * torch.randn(buffer.shape, generator=random))


def _drawn_twin_weight(weight: Any, noise: Any, kind: str, name: str) -> Any:
    constant = bool((weight == weight.flatten()[0]).all())
    if "Embedding" in kind:
        return 0.5 * noise
    if kind in ("Linear", "Conv1D", "Conv1d") and weight.dim() > 1:
        rows = weight.shape[0] if kind == "Conv1D" else weight[0].numel()
        return _GAIN * noise / rows**0.5
    if weight.dim() >= 2 and not constant and not name.endswith(("A_log", ".A", ".D")) and weight.abs().max() < 1:
        return _GAIN * noise / (weight.shape[-1] * weight.shape[-2]) ** 0.25  # experts, in whichever order
    if constant:  # a norm, or a bias
        return weight + _NORM_SPREAD * noise
    if weight.std() < _SMALL:
        return weight.mean() + 2 * _NORM_SPREAD * noise
    return weight * (1 + 0.2 * noise.clamp(-2, 2))


def _save_twin_model(model: Any, folder: Path) -> None:
    try:
        model.save_pretrained(str(folder), safe_serialization=True)
    except Exception as error:
        raise NoTwin(f"Transformers does not write its weights: {_twin_error_line(error)}") from error
    (folder / "generation_config.json").unlink(missing_ok=True)


# ---- prompts and logits ------------------------------------------------------------------------------


def _twin_prompts(small: Any, model: Any, seed: int) -> list[dict[str, Any]]:
    """A short prompt, and one that goes beyond every window and context."""
    import torch

    random = torch.Generator().manual_seed(seed)
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    avoided, size = set(_special_ids_of_twin(small.config)), int(text.vocab_size)
    limits = [limit[0] for limit in (small.window, small.rope_context) if limit]
    if type(model).__name__.endswith("ForSequenceClassification"):
        allowed = [token for token in range(size) if token not in avoided]
        return [_twin_sequences(allowed, int(model.config.num_labels), random)]
    found: list[dict[str, Any]] = []
    for length in (_SHORT_TOKENS, small.prompt_tokens):
        drawn = torch.randint(0, size, (4 * length + 64,), generator=random).tolist()
        tokens = [token for token in drawn if token not in avoided][:length]
        prompt = {"tokens": tokens, "positions": _twin_positions(length, limits), "embeddings": []}
        if model.get_output_embeddings() is None:  # a model that embeds texts: its last hidden states are compared
            prompt["embeddings"] = [1]
        if getattr(model.config, "is_encoder_decoder", False):
            start = getattr(model.config, "decoder_start_token_id", None) or 0
            prompt["decoder"] = [start, *reversed(tokens[1:])]
        found.append(prompt)
    return found


def _twin_sequences(allowed: list[int], n_labels: int, random: Any) -> dict[str, Any]:
    """Short texts, of which a classifier has one row of scores each."""
    import torch

    drawn = [torch.randint(0, len(allowed), (8 + i,), generator=random).tolist() for i in range(_SEQUENCES)]
    sequences = [[allowed[at] for at in one] for one in drawn]
    return {"tokens": [], "sequences": sequences, "labels": n_labels, "positions": [*range(_SEQUENCES)]}


def _special_ids_of_twin(config: Any) -> Iterator[int]:
    """Every id that config.json names: an image's, a pad's; they may stand for something else than a word."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special_ids_of_twin(value)
        elif name.endswith(("token_id", "token_index", "_id")):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))


def _twin_positions(length: int, limits: list[int]) -> list[int]:
    near = {limit + i for limit in limits for i in range(-_EDGE, _EDGE)}
    spread = {round(i * (length - 1) / (_SPREAD - 1)) for i in range(_SPREAD)}
    return sorted(position for position in near | spread if 0 <= position < length)


def _write_logits(model: Any, prompts: list[dict[str, Any]], out: Path, depth: int) -> None:
    import numpy as np
    import torch

    for number, prompt in enumerate(prompts):
        if "sequences" in prompt:
            scores = [model(input_ids=torch.tensor([tokens])).logits[0] for tokens in prompt["sequences"]]
            np.save(out / f"hf-{number}.npy", torch.stack(scores).float().numpy())
            continue
        asked = {"input_ids": torch.tensor([prompt["tokens"]])}
        if "decoder" in prompt:
            asked["decoder_input_ids"] = torch.tensor([prompt["decoder"]])
        cached = {} if prompt["embeddings"] else {"use_cache": False}
        try:
            with _random_twin_layer_outputs(model, depth, prompt["positions"]) as layers:
                found = model(**asked, **cached)
            rows = (found.last_hidden_state if prompt["embeddings"] else found.logits)[0][prompt["positions"]]
        except Exception as error:
            raise NoTwin(f"Transformers does not run it on tokens alone: {_twin_error_line(error)}") from error
        np.save(out / f"hf-{number}.npy", rows.float().numpy())
        np.savez(out / f"hf-layers-{number}.npz", **layers)


@contextmanager
def _random_twin_layer_outputs(model: Any, depth: int, positions: list[int]) -> Iterator[dict[str, Any]]:
    """The outputs of the layers at these positions, by number; none of an encoder-decoder, or where no list of modules
    is as long as the model is deep.
    """
    import torch

    found: dict[str, Any] = {}
    lists = (one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == depth)
    layers = () if getattr(model.config, "is_encoder_decoder", False) else next(lists, ())

    def keep(number: int, result: Any) -> None:
        output = result[0] if isinstance(result, tuple) else result
        if isinstance(output, torch.Tensor) and output.dim() == 3:  # others are not one state for each token
            found[str(number)] = output[0][positions].float().numpy()

    hooks = [
        layer.register_forward_hook(lambda _layer, _given, result, number=number: keep(number, result))
        for number, layer in enumerate(layers)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Measure how fast measuring is: every figure a ratio within one run, on the same questions, threads and machine.

How to run:

    make demo                                      # once: it makes the model that is measured
    scripts/setup-local.sh bench                   # once: the competitors, in .venv-bench
    .venv-bench/bin/python scripts/bench_eval.py   # about 15 minutes

    --questions FILE  questions, a JSON list of {"q", "choices", "gold"}; default: sentences of our prose as long as
                      the questions and choices of ARC-Challenge are on average, 22 and 5 words
    --only NAME,…     some of: server, hf, plain, tree, blocks, states, memory     --json   one object on stdout

Run it on a quiet machine: llama.cpp's threads spin while they wait, and beside another busy process every figure
falls by 5 x or more. Sides of a ratio take turns, and the fastest turn of each counts: what else runs only adds time.

What is measured, and the limit of each:

    server    requests/s against lm-eval's `gguf` model on `llama_cpp.server --logits_all`: at least 75 x.
    hf        requests/s against lm-eval's `hf` model, torch float32, batch 16 (the cloze format of ARC in both). Ours
              with the same weights as float32 and with the 16-bit file: at least 2.5 x without examples, 5 x with five.
              What the file reaches depends on what the CPU does in BF16.
    plain     requests/s against the same library decoding one request at a time, wanted rows only: at least 3 x
              without examples, 15 x on a five-example task whose choices are letters (MMLU's format).
    tree      tokens decoded against the nodes of the prefix tree, counted apart: at most 1.02 x. Tokens/s of the whole
              call against a bare decode of 512 tokens of the same file that wants as many rows of logits: at least
              0.97 x, which is 1 x within the noise. Against one that wants a single row: at least 0.8 x, since scoring
              wants nearly every second row, and a row of logits costs a quarter of its token.
    blocks    the same questions in the fixed blocks of a draw against all at once: requests/s at least 0.95 x, tokens
              decoded at most 1.02 x.
    states    tokens decoded against the prefix tree by a recurrent, a hybrid and a sliding-window model (tiny ones,
              made here), whose memory cannot be cut back to any token: at most 1.3 x.
    memory    resident memory after 100,000 requests against 10,000: at most 1.1 x; time per request: at most 1.1 x.
              lm-eval's own objects of all 100,000 are there in both cases.

Exit codes:  0 every limit holds · 1 one does not (it is named) · 2 it cannot be measured
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import gc
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

try:
    import numpy as np
    from lm_eval.api.instance import Instance

    from eval.llama.context import Context, ContextSettings
    from eval.llama.float_copy import float32_copy
    from eval.llama.lm import LlamaLM
    from eval.llama.logprobs import LogSoftmax
    from eval.llama.prefix_tree import Request
    from eval.tasks.drawn_questions import QuestionDraw
    from quantyard.formats.gguf import read_gguf_header
    from quantyard.hardware.machine import hardware_facts
    from scripts.bench_table import Row
except ImportError as error:
    print(f"{error}. Type: scripts/setup-local.sh bench; then run this with .venv-bench/bin/python", file=sys.stderr)
    sys.exit(2)

PROSE = REPO_DIR / "eval" / "suites" / "smoke" / "prose.jsonl"
MODEL_NAME = "SmolLM2-135M-Instruct"
TURNS = 3
QUESTION_WORDS, CHOICE_WORDS, CHOICES = 22, 5, 4  # about the means of ARC-Challenge (arXiv 1803.05457)
N_SERVER, N_HF, N_HF_SHOTS, N_PLAIN, N_SHOTS, N_TREE = 3, 40, 12, 40, 24, 100
N_MANY = 100_000
LETTERS = "ABCDEFGH"
Pair = tuple[str, str]


@dataclass(frozen=True)
class Question:
    """One question with its choices."""

    q: str
    choices: list[str]
    gold: int


@dataclass(frozen=True)
class Bench:
    """What every measurement gets."""

    gguf: Path  # 16-bit
    folder: Path  # the same model in Hugging Face format
    questions: Sequence[Question]
    threads: int


# ---- the questions as requests -----------------------------------------------------------------------


def cloze(question: Question) -> str:
    """ARC's format."""
    return f"Question: {question.q}\nAnswer:"


def lettered(question: Question) -> str:
    """MMLU's format: the choices stand in the question, the answer is a letter."""
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"{question.q}{choices}\nAnswer:"


def cloze_pairs(questions: Sequence[Question], shots: Sequence[Question] = ()) -> list[Pair]:
    """A request per choice, after the same examples for all."""
    head = "".join(f"{cloze(shot)} {shot.choices[shot.gold]}\n\n" for shot in shots)
    return [(head + cloze(question), f" {choice}") for question in questions for choice in question.choices]


def letter_pairs(questions: Sequence[Question], shots: Sequence[Question]) -> list[Pair]:
    """A request per letter, after the same examples for all."""
    head = "".join(f"{lettered(shot)} {LETTERS[shot.gold]}\n\n" for shot in shots)
    return [(head + lettered(q), f" {LETTERS[n]}") for q in questions for n in range(len(q.choices))]


def instances(pairs: Sequence[Pair]) -> list[Instance]:
    """As lm-eval asks."""
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def take_turns(*sides: Callable[[], Any]) -> list[float]:
    """Seconds of the fastest turn of each side; they run one after the other, `TURNS` times."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(TURNS):
        for side, spent in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            spent.append(time.perf_counter() - started)
    return [min(spent) for spent in seconds]


# ---- the measurements --------------------------------------------------------------------------------


def against_server(bench: Bench) -> list[Row]:
    """The documented way: lm-eval `gguf` on llama-cpp-python's server."""
    from lm_eval.models.gguf import GGUFLM

    questions = bench.questions[:N_SERVER]
    pairs = cloze_pairs(questions)
    ours = LlamaLM(bench.gguf, threads=bench.threads)
    with server(bench) as address:
        theirs = GGUFLM(base_url=address)
        theirs.loglikelihood(instances(pairs[:1]), disable_tqdm=True)  # the first request loads what it needs
        started = time.perf_counter()
        theirs.loglikelihood(instances(pairs), disable_tqdm=True)
        their_s = time.perf_counter() - started
    many = cloze_pairs(bench.questions[:N_HF])
    ours.loglikelihood(instances(many[:8]))
    our_s = take_turns(lambda: ours.loglikelihood(instances(many)))[0]
    theirs_rate, our_rate = len(pairs) / their_s, len(many) / our_s
    return [Row("requests/s against lm-eval gguf on llama_cpp.server", our_rate / theirs_rate, 75,
                f"{our_rate:.1f} against {theirs_rate:.2f}")]


@contextmanager
def server(bench: Bench) -> Iterator[str]:
    """`llama_cpp.server` on the loopback interface, stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "llama_cpp.server", "--model", str(bench.gguf), "--logits_all", "true",
            "--n_ctx", "1024", "--n_threads", str(bench.threads), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            time.sleep(0.1)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                sys.exit("llama_cpp.server does not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def against_hf(bench: Bench) -> list[Row]:
    """lm-eval's own reference: the original weights in torch, float32."""
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(bench.threads)
    theirs = HFLM(pretrained=str(bench.folder), dtype="float32", batch_size=16, device="cpu")
    header, rows = read_gguf_header(bench.gguf), list[Row]()
    with tempfile.TemporaryDirectory() as scratch, float32_copy(header, Path(scratch), bench.threads) as copy:
        sides = [LlamaLM(copy, threads=bench.threads), LlamaLM(bench.gguf, threads=bench.threads), theirs]
        for shots, n, limit in ((0, N_HF, 2.5), (5, N_HF_SHOTS, 5.0)):
            questions = bench.questions[5 : 5 + n]
            pairs = cloze_pairs(questions, bench.questions[:shots])
            found: list[Any] = [[] for _ in sides]
            asks = [partial(_ask, side, pairs, kept) for side, kept in zip(sides, found, strict=True)]
            *ours_s, their_s = take_turns(*asks)
            for name, our_s, kept in zip(("float32", "16-bit"), ours_s, found, strict=False):
                same = np.count_nonzero(np.equal(picks(questions, kept), picks(questions, found[-1])))
                detail = f"{len(pairs) / our_s:.1f} against {len(pairs) / their_s:.1f}; {same} of {n} picks are equal"
                what = f"requests/s against lm-eval hf float32, ours {name}, {shots}-shot"
                rows.append(Row(what, their_s / our_s, limit, detail))
    return rows


def _ask(lm: Any, pairs: Sequence[Pair], kept: list[Any]) -> None:
    kept[:] = lm.loglikelihood(instances(pairs), disable_tqdm=True)


def picks(questions: Sequence[Question], scores: Sequence[tuple[float, bool]]) -> list[int]:
    """The likeliest choice of each question."""
    values = iter(scores)
    return [int(np.argmax([next(values)[0] for _ in question.choices])) for question in questions]


def against_plain(bench: Bench) -> list[Row]:
    """The same library, one request at a time from an empty memory, with the rows it needs and no more."""
    ours = LlamaLM(bench.gguf, threads=bench.threads)
    rows = []
    for name, limit, pairs in (
        ("ARC, 0-shot", 3.0, cloze_pairs(bench.questions[5 : 5 + N_PLAIN])),
        ("letters, 5-shot", 15.0, letter_pairs(bench.questions[5 : 5 + N_SHOTS], bench.questions[:5])),
    ):
        requests = [ours.request(*pair) for pair in pairs]
        before = ours.tokens()
        few = requests if "0-shot" in name else requests[:16]  # one by one, five examples take minutes
        our_s, their_s = take_turns(
            lambda requests=requests: ours.scorer.score(requests),
            lambda few=few: one_by_one(ours, few, bench.threads),
        )
        spent = [(now - then) / TURNS for now, then in zip(ours.tokens(), before, strict=True)]
        ratio = (their_s / len(few)) / (our_s / len(requests))
        rates = f"{len(requests) / our_s:.1f} against {len(few) / their_s:.1f}"
        detail = f"{rates}; tokens {spent[0]:.0f} of {spent[1]:.0f}"
        rows.append(Row(f"requests/s against one at a time, {name}", ratio, limit, detail))
    return rows


def one_by_one(lm: LlamaLM, requests: Sequence[Request], threads: int) -> None:
    """The plain decode; one context for all."""
    softmax = LogSoftmax(lm.model.n_vocab)
    longest = max(len(request.tokens) for request in requests)
    with Context(lm.model, ContextSettings(longest, 1, threads)) as context:
        for request in requests:
            context.clear()
            tokens, n_rows = np.asarray(request.tokens, np.int32), len(request.targets)
            rows = np.concatenate(context.decode_one(tokens, n_rows=n_rows))
            softmax.of_tokens(rows, np.arange(len(request.targets)), np.asarray(request.targets, np.int32))


def against_tree(bench: Bench) -> list[Row]:
    """Nothing decoded twice, and nothing lost outside `llama_decode`."""
    lm = LlamaLM(bench.gguf, threads=bench.threads)
    pairs = cloze_pairs(bench.questions[:N_TREE])
    requests = [lm.request(*pair) for pair in pairs]
    nodes = len({tuple(request.tokens[: n + 1]) for request in requests for n in range(len(request.tokens))})
    ends = ((r.tokens, len(r.tokens) - n) for r in requests for n in range(len(r.targets)))
    scored = len({tuple(tokens[:end]) for tokens, end in ends})
    prompt = np.asarray([token for request in requests for token in request.tokens][:512], np.int32)
    with Context(lm.model, ContextSettings(512, 1, bench.threads)) as context:

        def bare(n_rows: int) -> None:
            for _ in range(8):
                context.clear()
                context.decode_one(prompt, n_rows=n_rows)

        bare(1)
        as_many = round(512 * scored / nodes)
        our_s, *bare_s = take_turns(lambda: lm.scorer.score(requests), lambda: bare(1), lambda: bare(as_many))
    decoded = lm.scorer.n_tokens_decoded / TURNS
    rate, one_row, same_rows = decoded / our_s, *(8 * 512 / seconds for seconds in bare_s)
    return [
        Row("tokens decoded against the prefix tree", decoded / nodes, 1.02, f"{decoded:.0f} of {nodes}", at_most=True),
        Row("tokens/s against a bare decode of 512", rate / one_row, 0.8, f"{rate:.0f} against {one_row:.0f}"),
        Row("the same, the bare one wanting as many rows", rate / same_rows, 0.97,
            f"{rate:.0f} against {same_rows:.0f}; {as_many} of 512 rows"),
    ]


def in_blocks(bench: Bench) -> list[Row]:
    """What it costs that a question's score does not depend on what else is asked."""
    lm = LlamaLM(bench.gguf, threads=bench.threads)
    questions = bench.questions[:N_TREE]
    asked = [
        Instance("loglikelihood", {}, pair, number, ("bench", place, 1))
        for place, question in enumerate(questions) for number, pair in enumerate(cloze_pairs([question]))
    ]
    blocks, decoded = QuestionDraw(tuple(range(len(questions)))).blocks(), dict[bool, int]()

    def ask(*, apart: bool) -> None:
        before = lm.scorer.n_tokens_decoded
        lm.blocks = {"bench": blocks} if apart else {}
        lm.loglikelihood(asked)
        decoded[apart] = lm.scorer.n_tokens_decoded - before

    whole_s, blocks_s = take_turns(lambda: ask(apart=False), lambda: ask(apart=True))
    rates = f"{len(asked) / blocks_s:.1f} against {len(asked) / whole_s:.1f}"
    tokens = f"{decoded[True]} against {decoded[False]}; {len(set(blocks.values()))} blocks"
    return [
        Row("requests/s in fixed blocks against all at once", whole_s / blocks_s, 0.95, rates),
        Row("tokens decoded, the same", decoded[True] / decoded[False], 1.02, tokens, at_most=True),
    ]


def other_memories(bench: Bench) -> list[Row]:
    """What is decoded by models that remember by a state or by a window; counted, so without a clock."""
    from tests.tiny_gguf import write_tiny

    rows = []
    for architecture, kind in (("mamba", "recurrent"), ("jamba", "hybrid"), ("gemma2", "sliding window of 32")):
        with tempfile.TemporaryDirectory() as folder:
            path = write_tiny(bench.gguf, Path(folder) / "tiny.gguf", architecture, window=32)
            lm = LlamaLM(path, threads=bench.threads)
            shots = [lm.request(*pair) for pair in cloze_pairs(bench.questions[5:N_TREE], bench.questions[:5])]
            lm.scorer.score(shots)
        nodes = len({tuple(request.tokens[: n + 1]) for request in shots for n in range(len(request.tokens))})
        detail = f"{lm.scorer.n_tokens_decoded} of {nodes}, {lm.scorer.n_tokens_requested} alone"
        name = f"tokens decoded against the prefix tree, {kind} ({architecture}), 5-shot"
        rows.append(Row(name, lm.scorer.n_tokens_decoded / nodes, 1.3, detail, at_most=True))
    return rows


def over_many(bench: Bench) -> list[Row]:
    """Peak memory and time of 10,000 and 100,000 requests on a tiny model, each in a process of its own."""
    from tests.tiny_gguf import write_tiny

    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny(bench.gguf, Path(folder) / "tiny.gguf", n_layers=1)
        few, many = (_many(tiny, n, bench.threads) for n in (10_000, N_MANY))
    memory, per_request = many["rss"] / few["rss"], (many["s"] / N_MANY) / (few["s"] / 10_000)
    sizes = f"{many['rss'] / 1e6:.0f} MB against {few['rss'] / 1e6:.0f} MB, {many['before'] / 1e6:.0f} before either"
    times = f"{many['s']:.1f} s against {few['s']:.1f} s"
    return [
        Row("memory after 100,000 requests against 10,000", memory, 1.1, sizes, at_most=True),
        Row("time per request, the same", per_request, 1.1, times, at_most=True),
    ]


def _many(model: Path, n: int, threads: int) -> dict[str, float]:
    argv = [sys.executable, __file__, "--many", str(n), "--gguf", str(model), "--threads", str(threads)]
    run = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=REPO_DIR)
    value: dict[str, float] = json.loads(run.stdout)
    return value


def ask_many(model: Path, n: int, threads: int) -> None:
    """The child of `over_many`: four choices a question, as lm-eval holds them; prints time and peak memory."""
    from quantyard.hardware.machine import peak_memory_bytes

    lm = LlamaLM(model, threads=threads)
    lm.loglikelihood(instances([("a question", " answer")]))
    pairs = [(f"Question {k // 4}: what follows {k // 4 % 977}?", f" {'xyzw'[k % 4]}") for k in range(N_MANY)]
    asked = instances(pairs)
    gc.collect()
    base, started = peak_memory_bytes(), time.perf_counter()
    lm.loglikelihood(asked[:n])
    print(json.dumps({"s": time.perf_counter() - started, "rss": peak_memory_bytes(), "before": base}))


# To add a measurement: add a function that returns rows, and name it here.
MEASUREMENTS: dict[str, Callable[[Bench], list[Row]]] = {
    "tree": against_tree, "plain": against_plain, "hf": against_hf, "server": against_server, "blocks": in_blocks,
    "states": other_memories, "memory": over_many,
}


def main() -> NoReturn:
    """Run what was asked for and print the table."""
    args = _arguments()
    if args.many:
        ask_many(args.gguf, args.many, args.threads)
        sys.exit(0)
    bench = _bench(args)
    rows: list[Row] = []
    for name in args.only.split(",") if args.only else MEASUREMENTS:
        print(f"{name} …", file=sys.stderr)
        found = MEASUREMENTS[name](bench)
        print(*map(Row.line, found), sep="\n", file=sys.stderr)
        rows += found
    _print(args, bench, rows)
    sys.exit(0 if all(row.holds for row in rows) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--many", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _bench(args: argparse.Namespace) -> Bench:
    folder = REPO_DIR / "artifacts" / "demo" / MODEL_NAME
    files = sorted((REPO_DIR / "artifacts" / "local" / MODEL_NAME).glob("*/stages/convert-*/files/model.gguf"))
    if not files or not folder.exists():
        print("The demo's model is not here. Type: make demo", file=sys.stderr)
        sys.exit(2)
    threads = args.threads or int(str(hardware_facts(0)["physical_cores"]))
    questions = _questions(args.questions) if args.questions else _from_prose()
    return Bench(args.gguf or files[-1], folder, questions, threads)


def _from_prose() -> list[Question]:
    """Questions of ARC's lengths, cut out of one text after the other; none has a right answer."""
    words = " ".join(json.loads(line)["text"] for line in PROSE.read_text().splitlines()).split()
    size = QUESTION_WORDS + CHOICES * CHOICE_WORDS
    rows = (words[at : at + size] for at in range(0, len(words) - size, size))
    cuts = range(QUESTION_WORDS, size, CHOICE_WORDS)
    return [
        Question(" ".join(row[:QUESTION_WORDS]), [" ".join(row[cut : cut + CHOICE_WORDS]) for cut in cuts], 0)
        for row in rows
    ]


def _questions(path: Path) -> list[Question]:
    text = path.read_text()
    found = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    return [
        Question(str(q.get("q", q.get("question"))), list(q["choices"]), int(q.get("gold", q.get("answer", 0))))
        for q in found
    ]


def _print(args: argparse.Namespace, bench: Bench, rows: Sequence[Row]) -> None:
    if args.json:
        value = {
            "hardware": hardware_facts(bench.threads),
            "rows": [asdict(row) | {"holds": row.holds} for row in rows],
        }
        print(json.dumps(value, indent=1))
        return
    print(f"{bench.gguf.name}, {len(bench.questions)} questions, {bench.threads} threads")
    print(*map(Row.line, rows), sep="\n")


if __name__ == "__main__":
    main()

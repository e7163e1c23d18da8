"""Encoder-decoders are measured as lm-eval measures them in Transformers: a random FLAN-T5 on both sides."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from builder.imatrix.bindings_reader import LocalReader
from builder.imatrix.matrix import check_imatrix_fits, read_imatrix
from builder.imatrix.reader import ImatrixLeg
from builder.llama.bindings_runtime import BindingsRuntime
from eval.analysis.chunks import DivergenceText
from eval.analysis.domain_chats import labelled_chat
from eval.analysis.domain_passages import chat_passage, document_passage
from eval.analysis.domain_texts import DomainDocument
from eval.analysis.passage_readers import PassageReaders
from eval.analysis.self_check import self_check
from eval.divergence import divergence_chunks, divergence_rolling_windows, divergence_side_by_side
from eval.llama.context import Context, ContextSettings
from eval.llama.lm import LlamaLM
from eval.llama.prefix_tree import answer_request
from eval.speed import measure_speed
from quantyard.llama.library import LlamaLibrary, llama_library_path
from quantyard.paths import local_venv_path
from quantyard.protocol.evaluation import DivergenceSettings, SpeedSettings
from server.encoder_decoder.model import EncoderDecoder, TooLong
from server.encoder_decoder.model import Sampling as ServedSampling
from tests.tiny_t5 import convert_tiny_t5, write_tiny_t5

PAIRS = [
    ("The tide mill belonged to", " their cousin"),
    ("The tide mill belonged to", " the widow Kessler"),
    ("There are 34 houses near the salt marsh at Eddering now", " against 467"),
    ("The tide mill belonged to", " their uncle's cousin, who had sold it"),
    ("Ends with a space ", "word"),
    ("", " A text of its own"),
]
NOISE = 5e-3  # nats per token: llama.cpp keeps the KV cache in 16 bits
TEXT = "There are 34 houses near the salt marsh at Eddering now, against 467 in the year 1875. " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not local_venv_path({}).exists():
        pytest.skip("no converter: ENGINE=local make images")
    return write_tiny_t5(tmp_path_factory.mktemp("t5") / "flan-t5")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[LlamaLM]:
    lm = LlamaLM(convert_tiny_t5(folder, folder.parent / "flan-t5.gguf", sys.executable), threads=1)
    yield lm
    lm.model.close()


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    hf = HFLM(pretrained=str(folder), backend="seq2seq", dtype="float32", batch_size=4, device="cpu")
    # HFLM ties the head to the embeddings, which in this model are two tensors: take it as it was loaded.
    hf._model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    return hf


def ask(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_continuations_score_as_in_transformers(ours: LlamaLM, hf: Any) -> None:
    mine = ours.loglikelihood(ask("loglikelihood", PAIRS))
    theirs = hf.loglikelihood(ask("loglikelihood", PAIRS), disable_tqdm=True)
    for pair, (a, a_greedy), (b, b_greedy) in zip(PAIRS, mine, theirs, strict=True):
        assert a == pytest.approx(b, abs=NOISE * len(hf.tok_encode(pair[1]))), pair
        assert a_greedy == b_greedy
        if pair[0]:
            assert ours._encode_pair(*pair) == hf._encode_pair(*pair)


def test_each_context_is_encoded_once(ours: LlamaLM) -> None:
    before = ours.scorer.n_tokens_decoded
    asked = [answer_request(ours.tok_encode(context), ours.tok_encode(text, False), 0) for context, text in PAIRS[:5]]
    found = ours.scorer.score(asked)
    contexts = {request.encoded for request in asked}
    spent = ours.scorer.n_tokens_decoded - before
    assert len(contexts) == 3
    assert spent < sum(map(len, contexts)) + sum(len(request.tokens) for request in asked)  # prefixes are shared too
    alone = [ours.scorer.score([request]).sums()[0][0] for request in asked]
    assert [score for score, _ in found.sums()] == pytest.approx(alone, abs=0.05)


def test_greedy_answers_are_those_of_transformers_up_to_max_gen_toks(ours: LlamaLM, hf: Any) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = [(prompt, options) for prompt in ("The tide mill", "Hello world", "To repair a bicycle")]
    mine = ours.generate_until(ask("generate_until", copy.deepcopy(asked)))
    theirs = hf.generate_until(ask("generate_until", copy.deepcopy(asked)), disable_tqdm=True)
    assert all(b.startswith(a) and a for a, b in zip(mine, theirs, strict=True)), (mine, theirs)


def test_a_rolling_text_scores_as_in_transformers_but_for_its_end(ours: LlamaLM, hf: Any) -> None:
    hf.add_bos_token, told = False, hf.add_bos_token  # neither side scores the EOS after a text then
    try:
        theirs = hf.loglikelihood_rolling(ask("loglikelihood_rolling", [(TEXT,)]), disable_tqdm=True)
    finally:
        hf.add_bos_token = told
    mine = ours.loglikelihood_rolling(ask("loglikelihood_rolling", [(TEXT,)]))
    n_tokens = len(ours.tok_encode(TEXT, add_special_tokens=False))
    assert mine[0] == pytest.approx(theirs[0], abs=NOISE * n_tokens)


def test_the_measurement_passes_its_own_check(ours: LlamaLM) -> None:
    found = self_check(ours)
    assert found.known_answers_right == found.known_answers
    assert found.rolling_difference < 1e-3


def test_a_check_of_scores_that_are_off_by_one_token_fails(ours: LlamaLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.analysis import self_check as module

    def off_by_one(encoded: Any, targets: Any, start: int) -> Any:
        return answer_request(encoded, targets, targets[0] if targets else start)

    monkeypatch.setattr(module, "answer_request", off_by_one)
    with pytest.raises(Exception, match="its likeliest ones"):
        self_check(ours)


def test_divergence_reads_half_a_chunk_and_scores_the_other(ours: LlamaLM, hf: Any) -> None:
    import torch

    settings = DivergenceSettings(n_ctx=64, n_chunks=3)
    cut = divergence_chunks([ours.model], TEXT, settings)
    rows = divergence_side_by_side([ours.model, ours.model], cut, 1, lambda _done: None)
    nll = rows.baseline_nll()
    assert len(nll) == cut.size // 2
    assert rows.models()[0].kld == pytest.approx(0, abs=1e-6)
    encoded = torch.tensor(np.concatenate([cut[:, :32], np.full((3, 1), ours.model.eos)], axis=1), dtype=torch.long)
    labels = torch.tensor(cut[:, 32:], dtype=torch.long)
    with torch.no_grad():
        logits = torch.log_softmax(hf.model(input_ids=encoded, labels=labels).logits, -1)
    wanted = -logits.gather(2, labels.unsqueeze(-1)).reshape(-1).numpy()
    assert np.abs(nll - wanted).mean() < NOISE


def test_windows_give_the_encoder_their_context(ours: LlamaLM) -> None:
    windows = divergence_rolling_windows(
        ours.model, DivergenceText("text", TEXT, (TEXT,)), DivergenceSettings(n_ctx=64, n_chunks=3)
    )
    assert windows[0].encoded == (ours.model.eos,)
    assert windows[1].encoded == (windows[0].targets[-1],)
    assert all(window.tokens[0] == ours.model.decoder_start for window in windows)


def test_speed_times_the_encoder_and_the_decoder(ours: LlamaLM) -> None:
    settings = SpeedSettings(prompt_tokens=64, generated_tokens=4, repeats=2)
    with Context(ours.model, ContextSettings(68, threads=1, n_encoded=64)) as context:
        times = measure_speed(context, settings, lambda _done: None)
        assert len(times.prompt_s) == len(times.generation_s) == 2
        assert context.n_tokens_decoded >= 3 * 64


def test_decoding_before_encoding_is_refused_and_does_not_abort(ours: LlamaLM) -> None:
    with Context(ours.model, ContextSettings(64, threads=1)) as context, pytest.raises(ValueError, match="encode"):
        context.decode_one(np.array([0], np.int32))


# ---- what else runs the model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(ours: LlamaLM) -> str:
    return llama_library_path(None)


@pytest.mark.parametrize("by_library", [False, True], ids=["bindings", "library"])
def test_verify_sees_every_logit_of_the_decoder(ours: LlamaLM, library: str, by_library: bool) -> None:
    with BindingsRuntime(ours.model.path, 1, library if by_library else None) as runtime:
        n_tokens = len(runtime.tokenize("Hello, world!", add_special=True))
        assert runtime.finite_logits(["Hello, world!"]) == n_tokens
        ids = runtime.tokenize(" their cousin", add_special=False)
        (score, _), = ours.loglikelihood(ask("loglikelihood", [("", " their cousin")]))
        assert runtime.text_logprob(ids) == pytest.approx(score, abs=NOISE * len(ids))


@pytest.mark.parametrize("by_library", [False, True], ids=["bindings", "library"])
def test_the_importance_matrix_covers_encoder_and_decoder(
    ours: LlamaLM, library: str, by_library: bool, tmp_path: Path
) -> None:
    text, n_ctx = tmp_path / "text", 64
    text.write_text(TEXT)
    with LocalReader(ours.model.path, 1, n_ctx, library if by_library else None) as reader:
        loss = reader.read(text, ImatrixLeg(0, 3, None, tmp_path / "matrix.gguf"))
    matrix = read_imatrix(tmp_path / "matrix.gguf")
    check_imatrix_fits(matrix, ours.model.header)
    blocks = {name.rsplit(".", 2)[0] for name in matrix.entries}
    assert blocks == {"enc.blk.0", "enc.blk.1", "dec.blk.0", "dec.blk.1"}
    counts = {name: int(entry.counts[0]) for name, entry in matrix.entries.items()}
    assert counts["enc.blk.0.attn_q.weight"] == 3 * 33 and counts["dec.blk.0.attn_q.weight"] == 3 * 32
    assert counts["dec.blk.1.cross_attn_k.weight"] == 3 * 33
    rows = divergence_side_by_side([ours.model], divergence_chunks(
        [ours.model], TEXT, DivergenceSettings(n_ctx=n_ctx, n_chunks=3)
    ), 1, lambda _done: None)
    assert loss.nats == pytest.approx(rows.baseline_nll().mean(), abs=0.1)


def test_the_server_writes_what_the_measurement_writes(ours: LlamaLM, library: str) -> None:
    model = EncoderDecoder(LlamaLibrary(library), ours.model.path, 0, 2, 1)
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = [(prompt, options) for prompt in ("The tide mill", "Hello world", "To repair a bicycle")]
    for (prompt, _), wanted in zip(asked, ours.generate_until(ask("generate_until", asked)), strict=True):
        tokens = model.tokenize(prompt, add_special=True)
        pieces = list(model.answer(tokens, 12, ServedSampling(temperature=0)))
        assert b"".join(piece for piece in pieces if piece).decode(errors="replace") == wanted
    with pytest.raises(TooLong, match="513 tokens, and the context of the encoder 512"):
        next(model.answer([5] * 513, 1, ServedSampling()))


def test_a_domain_is_scored_in_the_decoder_after_what_the_encoder_reads(ours: LlamaLM) -> None:
    model = ours.model
    chat = labelled_chat(DomainDocument("a", messages=(
        {"role": "user", "content": "How many houses?"}, {"role": "assistant", "content": "There are 34 houses now."},
    )))  # fmt: skip
    document = document_passage(model, model.tokenize(TEXT, add_special=False)[:60], "text")
    answer = chat_passage(model, chat, 500, 500, parse_special=False)
    assert len(document.encoded) == 30 + model.adds_eos and len(document.targets) == 30
    assert answer.targets.tolist() == [*range(1, len(answer.tokens))], "the answer, after the start token"
    with PassageReaders([model, model], 1) as readers:
        rows = readers.read([document, answer])
    (same,) = rows.models()
    assert len(same.kld) == 30 + len(answer.targets) and same.kld.max() < NOISE

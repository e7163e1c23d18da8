"""Requests to a served model: what ordinary clients send and must be answered, and what hostile ones send and must not.

One table for every server that Quantyard starts. The limits are in server/limits/request_limits.json, where each has `most`, the
largest value that passes, and `what`, the words of the error. What they count:

    body_bytes              the body as it is sent; refused with 413, everything else of a body with 400
    json_depth, json_values arrays and objects within one another ([] is 1), and values of any kind in the whole body
    text_bytes              `content` of /tokenize, in UTF-8
    media                   pictures and sounds of a request; each must be in it, in base64: PNG, JPEG, GIF, BMP, WAV of at
                            least 8,000 samples a second, or MP3. No address is fetched
    picture_pixels          width times height, as the head of the file says
    messages, tools         entries of these lists
    prompts                 entries of `prompt` or `input`, if these are lists of anything but numbers
    answers                 `n`, `n_cmpl`, `best_of`
    tokens                  `max_tokens`, `max_completion_tokens`, `max_output_tokens`, `n_predict`, `repeat_last_n`,
                            `dry_penalty_last_n`, `n_keep`, `n_discard`, `top_k`, `min_keep`; least: -2
    probabilities           `n_probs`, `top_logprobs`, and `logprobs` if it is a number
    stops, stop_chars       `stop` and `stop_sequences`: how many, and how long each
    biases                  entries of `logit_bias`, a list or an object
    samplers                entries of `samplers` and of `dry_sequence_breakers`
    grammar_…               `grammar`, a text in GBNF. A repetition {m,n} counts its larger number, * + ? count 1; the product
                            is taken from the outermost group inwards, through rules. Optional: ? * {0,…}, a rule or group
                            that may match nothing. Ways to go on: the literals and classes that may come next at a place,
                            through rules. A recursive rule must be told by what it begins with.
    schema_…                every JSON schema: `json_schema`, `response_format.schema`, `response_format.json_schema.schema`,
                            `response_format.json_schema`, `tools[].function.parameters`, `tools[].parameters`,
                            `tools[].input_schema`, `text.format.schema`. Values and levels as in JSON; expanded: schemas
                            met when references are followed, each path for itself, a cycle once
    …_loops, …_written      parts in a row that may be nothing and repeat; all numbers of repetitions, added up
    …_run_ways              ways through a run of one character, the largest number over all characters and lengths up to 64
    schema_enums, schema_optional_all   over a whole schema, and over all schemas of a request
    schema_number           |minimum|, |maximum|, |exclusiveMinimum|, |exclusiveMaximum|
    pattern_…               `pattern` in a schema, a regular expression

A choice must not name a word twice. What is repeated must be something, no repetition itself, and its ways, if shorter than 4
characters, must be told apart by their first character or be words. A class must hold a character.

Refused whatever their values: fields that only llama-server's own front sends to its back (`grammar_triggers`,
`grammar_lazy`, `preserved_tokens`, `chat_parser`), since they reach parsers unchecked.

To add a case: a row in ORDINARY or HOSTILE. A body is made when it is asked for, since some are large.
"""

# ruff: noqa: E501 (a table: one row for each case)
from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final

Json = Any
CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"
_JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Case:
    """One request and the status that it is answered with, by a client with an ordinary key."""

    name: str
    path: str
    body: Callable[[], Json | bytes]  # bytes are sent as they are, anything else as JSON
    status: int = 200
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)

    def sent(self) -> bytes:
        """The body on the wire."""
        made = self.body()
        return made if isinstance(made, bytes) else json.dumps(made).encode()

    def __str__(self) -> str:
        return self.name


# ---- makers ------------------------------------------------------------------------------------------------


def chat(**fields: Json) -> Callable[[], Json]:
    """A short chat with these fields."""
    return lambda: {"messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4} | _made(fields)


def text(**fields: Json) -> Callable[[], Json]:
    """A short completion with these fields."""
    return lambda: {"prompt": "One, two,", "max_tokens": 4} | _made(fields)


def _made(fields: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value() if callable(value) else value for name, value in fields.items()}  # callable: large


def data_url(data: bytes) -> str:
    """A file as it stands in a request."""
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def _part(url: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url}}


def picture(url: str, times: int = 1) -> Callable[[], Json]:
    """A chat about a picture."""
    parts = [_part(url)] * times
    return chat(messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}])


def sound(data: bytes) -> Callable[[], Json]:
    """A chat about a sound."""
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    return chat(messages=[{"role": "user", "content": [part]}])


def png_head(width: int, height: int) -> bytes:
    """The first bytes of a PNG of this size."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes(9)


def _wav_head(rate: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, rate, rate, 1, 8)
    return b"RIFF\xff\0\0\0WAVEfmt " + struct.pack("<I", len(form)) + form + b"data\xd7\0\0\0" + bytes(215)


_JPEG_HEAD: Final = b"\xff\xd8\xff\xe0\0\x04\0\0\xff\xc0\0\x0b\x08" + struct.pack(">HH", 30_000, 30_000) + bytes(8)
_BMP_HEAD: Final = b"BM" + bytes(12) + struct.pack("<Iii", 40, 30_000, -30_000) + bytes(28)


def schema(value: Json) -> Callable[[], Json]:
    """A chat whose answer follows a JSON schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": value}})


def tool(parameters: Json) -> Callable[[], Json]:
    """A chat with a tool of these parameters."""
    return chat(tools=[{"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}])


def nested(levels: int, wrap: Callable[[Json], Json], core: Json) -> Json:
    """`core`, wrapped so many times."""
    return reduce(lambda inner, _: wrap(inner), range(levels), core)


def fields_of(count: int, *, required: bool) -> Json:
    """The schema of a pydantic model with so many fields."""
    kinds: tuple[Json, ...] = ({"type": "string"}, {"type": "integer"}, {"anyOf": [{"type": "number"}, {"type": "null"}]})
    names = [f"field_{number}" for number in range(count)]
    properties = {name: kinds[number % 3] for number, name in enumerate(names)}
    return {"type": "object", "title": "Model", "properties": properties, "required": names if required else []}


def doubling(levels: int, keyword: str) -> Json:
    """Definitions that each refer to the next twice: few bytes that stand for 2^levels schemas."""
    defs: dict[str, Json] = {f"d{at}": {keyword: [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(levels)}
    defs[f"d{levels}"] = {"type": "object", "properties": {"x": {"type": "string"}}}
    return {"$ref": "#/$defs/d0", "$defs": defs}


JSON_GRAMMAR: Final = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# white space, at most a line of it
ws ::= | " " | "\n" [ \t]{0,20}
"""
SUM_GRAMMAR: Final = r"""root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
JAPANESE_GRAMMAR: Final = r"""root ::= jp-char+ ([ \t\n] jp-char+)*
jp-char ::= hiragana | katakana | punctuation | cjk
hiragana ::= [ぁ-ゟ]
katakana ::= [ァ-ヿ]
punctuation ::= [、-〾]
cjk ::= [一-鿿]
"""
CHESS_GRAMMAR: Final = r"""root ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""
TREE: Final[Json] = {
    "$ref": "#/$defs/node", "$defs": {"node": {
        "type": "object", "required": ["name"],
        "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    }},
}  # fmt: skip
WEATHER: Final[Json] = {
    "type": "object", "required": ["city", "days"], "additionalProperties": False, "properties": {
        "city": {"type": "string", "maxLength": 24}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
}  # fmt: skip
_LONG_CHAT: Final = [{"role": ("user", "assistant")[turn % 2], "content": f"Turn {turn}."} for turn in range(21)]
_DATE: Final[Json] = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}
_UUID: Final[Json] = {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
_ANTHROPIC_TOOL: Final = {"name": "weather", "description": "", "input_schema": WEATHER}


def said(content: str) -> list[Json]:
    """One message of the user."""
    return [{"role": "user", "content": content}]


# ---- what must pass ----------------------------------------------------------------------------------------

ORDINARY: Final = (
    Case("a chat", CHAT, chat()),
    Case("a chat with everything that the openai package sends", CHAT, chat(
        temperature=0.7, top_p=0.9, n=1, stop=["\n\n", "END"], presence_penalty=0.1, frequency_penalty=0.1,
        logit_bias={"15": -1}, seed=42, user="me", logprobs=True, top_logprobs=20, stream=False,
    )),
    Case("a streamed chat with its usage", CHAT, chat(stream=True, stream_options={"include_usage": True})),
    Case("a conversation of 21 turns", CHAT, chat(messages=_LONG_CHAT)),
    Case("content in parts", CHAT, chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])),
    Case("text in every script", CHAT, chat(messages=said("Grüße, 你好, שלום, 👋🏽 \u0000\n\t'\\"))),
    Case("a completion", TEXT, text()),
    Case("a completion with llama-server's own settings", TEXT, text(
        n_predict=4, top_k=40, min_p=0.05, repeat_last_n=64, repeat_penalty=1.1, cache_prompt=True, n_probs=5,
        samplers=["top_k", "top_p", "temperature"], dry_multiplier=0.8, dry_sequence_breakers=["\n", ":"], mirostat=0,
    )),
    Case("completions of four prompts", TEXT, text(prompt=["One", "Two", "Three", "Four"])),
    Case("a completion of tokens", TEXT, text(prompt=[1, 2, 3, 4])),
    Case("logprobs as a number", TEXT, text(logprobs=5)),
    Case("no limit of tokens but a stop", TEXT, text(max_tokens=-1, stop=["a", "e", "i", "o", "u", " "], prompt="T")),
    Case("a JSON object", CHAT, chat(response_format={"type": "json_object"})),
    Case("a pydantic model of 40 fields", CHAT, schema(fields_of(40, required=True))),
    Case("a pydantic model of 40 optional fields", CHAT, schema(fields_of(40, required=False))),
    Case("a schema of tree nodes", CHAT, schema(TREE)),
    Case("a schema with patterns and lengths", CHAT, schema({"type": "object", "required": ["a", "b", "c"], "properties": {
        "a": _DATE, "b": _UUID, "c": {"type": "string", "minLength": 1, "maxLength": 500},
    }})),
    Case("a schema with a list of at most 100", CHAT, schema({"type": "array", "items": WEATHER, "maxItems": 100})),
    Case("a schema with an enum of 250", CHAT, schema({"enum": [f"{number:03} country" for number in range(250)]})),
    Case("a schema with a large range", CHAT, schema({"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1})),
    Case("a schema with the words of a schema as names", CHAT, schema({"type": "object", "required": ["pattern"], "properties": {
        "pattern": {"type": "string"}, "enum": {"type": "integer"}, "$ref": {"type": "string"}, "maxLength": {"type": "integer"},
    }})),
    *(Case(f"a schema with the pattern {pattern}", CHAT, schema({"type": "string", "pattern": pattern})) for pattern in (
        r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$", r"^(\+\d{1,2}\s)?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}$",
        r"^([a-z]+\.)*[a-z]+$", r"^(([a-z]+|[0-9]+)-)+x$", r"^([a-z]|[0-9])+$", r"^\d+(\.\d+)?([eE][+-]?\d+)?$",
        r"^#([0-9a-f]{3}|[0-9a-f]{6})$", r"^(the |then )+end$", "^(mon|tue|wed|thu|fri|sat|sun)$", "^(0|1){32}$",
        r"^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$", r"^([0-9A-F]{2}:){5}[0-9A-F]{2}$",
    )),
    Case("a schema beside the messages", CHAT, chat(json_schema=WEATHER)),
    Case("a tool", CHAT, tool(WEATHER)),
    Case("a tool without parameters", CHAT, chat(tools=[{"type": "function", "function": {"name": "now"}}])),
    Case("a grammar of three words", TEXT, text(grammar='root ::= "yes" | "no" | "maybe"')),
    Case("llama.cpp's grammar of JSON", TEXT, text(grammar=JSON_GRAMMAR)),
    Case("llama.cpp's grammar of arithmetic", TEXT, text(grammar=SUM_GRAMMAR)),
    Case("a grammar of a list", TEXT, text(grammar='root ::= item+\nitem ::= "- " [^\\r\\n]+ "\\n"')),
    Case("llama.cpp's grammar of Japanese", TEXT, text(grammar=JAPANESE_GRAMMAR)),
    Case("llama.cpp's grammar of chess", TEXT, text(grammar=CHESS_GRAMMAR)),
    Case("an empty grammar", TEXT, text(grammar="")),
    Case("a grammar of days", TEXT, text(grammar='root ::= day (", " day){0,6}\nday ::= "mon" | "tue" | "wed" | "thu" | "fri"')),
    Case("a grammar of 32 bits", TEXT, text(grammar='root ::= ("0" | "1"){32}')),
    Case("a grammar of words that begin alike", TEXT, text(grammar='root ::= ("the " | "then " | "there ")+ "end"')),
    Case("a grammar of three lists of letters", TEXT, text(grammar="root ::= [a-z]* [a-z]* [a-z]*")),
    Case("a grammar of an IP address", TEXT, text(grammar='root ::= [0-9]{1,3} ("." [0-9]{1,3}){3}')),
    Case("a grammar of statements", TEXT, text(
        grammar='root ::= (let | call)*\nlet ::= name " = " name ";"\ncall ::= name "(); "\nname ::= [a-z]+')),
    Case("a message as Anthropic's client sends it", "/v1/messages", lambda: {
        "max_tokens": 4, "messages": said("Hi."), "system": "Be brief.", "stop_sequences": ["END"],
    }),
    Case("a tool as Anthropic's client sends it", "/v1/messages", lambda: {
        "max_tokens": 4, "messages": said("Hi."), "tools": [_ANTHROPIC_TOOL],
    }),
    Case("a response", "/v1/responses", lambda: {"input": "Say hi.", "max_output_tokens": 4}),
    Case("tokenize", "/tokenize", lambda: {"content": "Hello, world.", "add_special": True}),
    Case("tokenize 100 kB", "/tokenize", lambda: {"content": "Hello, world. " * 7000}),
    Case("detokenize", "/detokenize", lambda: {"tokens": [1, 2, 3]}),
    Case("the template applied", "/apply-template", lambda: {"messages": said("Hi.")}),
    Case("the models", "/v1/models", lambda: b"", method="GET", headers={}),
    Case("the health", "/health", lambda: b"", method="GET", headers={}),
    Case("a charset beside the type", CHAT, chat(), headers={"Content-Type": "application/json; charset=utf-8"}),
    Case("what curl -d sends without a type", CHAT, chat(), headers={"Content-Type": "application/x-www-form-urlencoded"}),
)  # fmt: skip

# ---- what must not -----------------------------------------------------------------------------------------


def _is_refused(name: str, body: Callable[[], Json | bytes], path: str = TEXT, status: int = 400) -> Case:
    return Case(name, path, body, status)


_PAREN: Final = 30_000
# Few letters, and more ways through a token than can be followed.
AMBIGUOUS_GRAMMARS: Final = (
    'root ::= ("-" | "-" | "-" | "-"){8} "x"', 'root ::= ([a-z] | [a-m]){12} "9"', 'root ::= (("-" | [-_])){12} "x"',
    'root ::= r{12} "x"\nr ::= s\ns ::= "-" | [-_]', "root ::= " + '("-" | "-") ' * 20 + '"x"', "root ::= " + '("-" | [-_]) ' * 20,
    "root ::= " + "r " * 20 + '"x"\nr ::= "-" | s\ns ::= [-_]', 'root ::= ("-" ("-" | [-_]))* "x"', 'root ::= ("-" "-"*)* "x"',
    'root ::= ([a-z]* "a")* "9"', 'root ::= "-" root | [-_] root | "x"', 'root ::= ("-" | [-_]) root | "x"',
    "root ::= " + "[a-z]+ " * 12, 'root ::= ("ab" | "ab"){8}', "root ::= " + '("ab" | "ab") ' * 12, 'root ::= ("-" | "--"){20}',
    'root ::= ("\\x2d" | "-"){12}', 'root ::= ("-"{1,3} "-"){12} "x"', 'root ::= x{12}\nx ::= "a" [b] | "a" [a-c]',
)  # fmt: skip
AMBIGUOUS_PATTERNS: Final = (
    "^(a|a|a){12}b$", "^([a-z]|[a-m]){12}9$", r"^(\w|\d){12}-$", "^" + "(a|a)" * 20 + "$", "^" + "(-|[-+])" * 20 + "x$",
    "^((a|[ab])b?){20}c$", "^(aa|aa){12}b$", "^(a|a|a|aa|aaa)*$", "^(a*)*$", "^(a+)+$", "^([a-z]|[a-f])*$",
    "^" + "[a-z]*" * 20 + "$", "^" + "(a|)" * 100 + "$", "^" + "[a-z]+" * 12 + "$",
)  # fmt: skip
HOSTILE: Final = (
    # pictures and sounds
    _is_refused("a picture of another server", picture("http://127.0.0.1:1/a.png"), CHAT),
    _is_refused("a picture of the server's own disk", picture("file:///etc/passwd"), CHAT),
    _is_refused("a picture as bare base64", picture("aGVsbG8="), CHAT),
    _is_refused("a picture that is not base64", picture("data:image/png;base64,a$"), CHAT),
    _is_refused("a picture of 900 million pixels", picture(data_url(png_head(30_000, 30_000))), CHAT),
    _is_refused("a JPEG of 900 million pixels", picture(data_url(_JPEG_HEAD)), CHAT),
    _is_refused("a GIF of 4 billion pixels", picture(data_url(b"GIF89a\xff\xff\xff\xff")), CHAT),
    _is_refused("a BMP of 900 million pixels", picture(data_url(_BMP_HEAD)), CHAT),
    _is_refused("a picture of a format without a head", picture(data_url(bytes(18))), CHAT),
    _is_refused("a PNG that ends in its head", picture(data_url(png_head(1, 1)[:18])), CHAT),
    _is_refused("17 pictures", picture(data_url(png_head(1, 1)), 17), CHAT),
    _is_refused("a sound of a sample a second", sound(_wav_head(1)), CHAT),
    _is_refused("a sound that may hold hours of silence", sound(b"fLaC" + bytes(64)), CHAT),
    _is_refused("a sound of another server", chat(messages=[{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"url": "http://127.0.0.1:1/a.wav"}}]}]), CHAT),
    _is_refused("a picture of another server for the API of answers", lambda: {"input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": "http://127.0.0.1:1/a.png"}]}], "max_output_tokens": 4}, "/v1/responses"),
    _is_refused("a picture of another server for the API of messages", lambda: {"max_tokens": 4, "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/a.png"}}]}],
    }, "/v1/messages"),
    _is_refused("a picture for a text that is none", text(prompt={
        "prompt_string": "<__media__>", "multimodal_data": ["aGVsbG8="]})),
    # grammars
    _is_refused("a grammar of 30,000 brackets", text(grammar=lambda: "root ::= " + "(" * _PAREN + '"a"' + ")" * _PAREN)),
    _is_refused("a grammar of 40 brackets", text(grammar="root ::= " + "(" * 40 + '"a"' + ")" * 40)),
    _is_refused("a grammar of 100 optional letters in a row", text(grammar="root ::= " + '"a"? ' * 100)),
    _is_refused("a grammar of 100 stars in a row", text(grammar="root ::= " + "[a-z]* " * 100)),
    _is_refused("a grammar of 100 optional rules in a row", text(
        grammar="root ::= " + " ".join(["r"] * 100) + '\nr ::= "a"?')),
    _is_refused("a grammar of 100 empty options in a row", text(grammar="root ::= " + '("a" | ) ' * 100)),
    _is_refused("a grammar of 100 repeats from nothing in a row", text(grammar="root ::= " + '"a"{0,3} ' * 100)),
    _is_refused("a grammar of 20 optional blanks in a row", text(grammar="root ::= " + '" "? ' * 20)),
    _is_refused("a grammar of an optional blank 40 times", text(grammar='root ::= (" "?){40}')),
    _is_refused("a grammar of an optional rule up to 40 times", text(grammar='root ::= r{1,40}\nr ::= " "?')),
    _is_refused("a grammar of optional blanks in repeats in repeats", text(grammar='root ::= ((" "?){4}){0,10}')),
    _is_refused("a grammar of 1,000 words", text(grammar="root ::= " + " | ".join(f'"w{n}"' for n in range(1000)))),
    _is_refused("a grammar of 32 x 32 words", text(grammar="root ::= " + " | ".join(["r"] * 32) + "\nr ::= " + " | ".join(
        f'"w{n}"' for n in range(32)))),
    _is_refused("a grammar that repeats a million times", text(grammar='root ::= "a"{1000000}')),
    _is_refused("a grammar that repeats at least a million times", text(grammar='root ::= "a"{1000000,}')),
    _is_refused("a grammar of repeats in repeats", text(grammar='root ::= ((("a"{1,100}){1,100}){1,100}){1,100}')),
    _is_refused("a grammar of repeats in rules", text(
        grammar='root ::= b{100}\nb ::= c{100}\nc ::= d{100}\nd ::= "a"{100}')),
    _is_refused("a grammar that calls itself first", text(grammar='root ::= root "a" | "b"')),
    _is_refused("a grammar that calls itself first in two steps", text(grammar='root ::= x\nx ::= y "a" | "b"\ny ::= "c"? x')),
    _is_refused("an ambiguous grammar that doubles with every letter", text(
        grammar='root ::= x\nx ::= "a" x "b" | "a" x "c" | "a"')),
    *(_is_refused(f"an ambiguous grammar: {grammar[:60]!r}", text(grammar=grammar)) for grammar in AMBIGUOUS_GRAMMARS),
    _is_refused("a class of no character", text(grammar='root ::= "a" [b-a]')),
    _is_refused("a class of no character that may be left out", text(grammar='root ::= [^\\x00-\\U0010FFFF]* "a"')),
    _is_refused("a grammar of 10 loops in a row", text(grammar="root ::= " + " ".join(f'"{n}"*' for n in range(10)))),
    _is_refused("a grammar of 100 repeats of 1,000", text(grammar="root ::= " + '"a"{1000} "b" ' * 100)),
    _is_refused("a grammar of 1 MB", text(grammar=lambda: 'root ::= "' + "a" * 1_000_000 + '"')),
    _is_refused("a grammar of 5,000 rules", text(grammar='root ::= "a"\n' + "".join(f'r{n} ::= "a"\n' for n in range(5000)))),
    _is_refused("a grammar that is no text", text(grammar=["root"])),
    _is_refused("a grammar beside a chat", chat(grammar="root ::= " + '"a"? ' * 100), CHAT),
    # schemas
    _is_refused("a schema of maxLength 10 million", schema({"type": "string", "maxLength": 10**7}), CHAT),
    _is_refused("a schema of minLength 10 million", schema({"type": "string", "minLength": 10**7}), CHAT),
    _is_refused("a schema of maxItems a million", schema({"type": "array", "items": {}, "maxItems": 10**6}), CHAT),
    _is_refused("a schema of lists of lists", schema(nested(5, lambda inner: {
        "type": "array", "items": inner, "maxItems": 100}, {"type": "string"})), CHAT),
    _is_refused("a schema of 200 optional properties", schema(fields_of(200, required=False)), CHAT),
    _is_refused("a schema of 1,000 properties", schema(fields_of(1000, required=True)), CHAT),
    _is_refused("a schema 100 levels deep", schema(nested(100, lambda inner: {"items": inner}, {})), CHAT),
    _is_refused("a schema 25 objects deep", schema(nested(25, lambda inner: {
        "type": "object", "properties": {"a": inner}}, {})), CHAT),
    _is_refused("a schema with an enum of 10,000", schema({"enum": [f"w{n}" for n in range(10_000)]}), CHAT),
    _is_refused("a schema with 1,000 branches", schema({"anyOf": [{"const": n} for n in range(1000)]}), CHAT),
    _is_refused("a schema of 2^22 parts by allOf", schema(doubling(22, "allOf")), CHAT),
    _is_refused("a schema of 2^22 parts by anyOf", schema(doubling(22, "anyOf")), CHAT),
    _is_refused("a schema of 2^22 parts by prefixItems", schema(doubling(22, "prefixItems")), CHAT),
    _is_refused("a schema that is itself", schema({"$ref": "#"}), CHAT),
    _is_refused("a schema that is itself by allOf", schema({"allOf": [{"$ref": "#"}]}), CHAT),
    _is_refused("two schemas that are each other", schema({"$ref": "#/$defs/a", "$defs": {
        "a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}), CHAT),
    _is_refused("a schema somewhere else", schema({"$ref": "http://127.0.0.1/schema.json"}), CHAT),
    _is_refused("a schema with a bound of 10^300", schema({"type": "integer", "minimum": 1e300}), CHAT),
    _is_refused("a schema with a const of 1 MB", schema({"const": "a" * 1_000_000}), CHAT),
    _is_refused("a schema of 20,000 values", schema({"type": "object", "description": "", "examples": list(range(20_000))}), CHAT),
    _is_refused("a pattern of 200 optional letters", schema({"type": "string", "pattern": "^" + "a?" * 200 + "$"}), CHAT),
    _is_refused("a pattern of an optional blank 40 times", schema({"type": "string", "pattern": "^( ?){40}$"}), CHAT),
    _is_refused("a pattern of repeats in repeats", schema({"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"}), CHAT),
    _is_refused("a pattern of 500 brackets", schema({"type": "string", "pattern": "^" + "(" * 500 + "a" + ")" * 500 + "$"}), CHAT),
    _is_refused("a pattern that repeats 100,000 times", schema({"type": "string", "pattern": "^a{100000}$"}), CHAT),
    _is_refused("a pattern of 1 MB", schema({"type": "string", "pattern": "^" + "a" * 1_000_000 + "$"}), CHAT),
    *(_is_refused(f"an ambiguous pattern: {pattern[:60]}", schema({"type": "string", "pattern": pattern}), CHAT)
      for pattern in AMBIGUOUS_PATTERNS),
    _is_refused("a pattern of 700 words", schema({"pattern": "^(" + "|".join(f"ab{n}" for n in range(700)) + ")$"}), CHAT),
    _is_refused("a pattern of 100 repeats of 1,000", schema({"pattern": "^" + "[a-z]{1,1000}-" * 100 + "$"}), CHAT),
    _is_refused("a schema of 10 enums of 100", schema({"properties": {
        str(number): {"enum": list(range(100))} for number in range(10)}}), CHAT),
    _is_refused("10 tools of 90 optional properties", chat(tools=[{"type": "function", "function": {
        "name": f"f{number}", "parameters": fields_of(90, required=False)}} for number in range(10)]), CHAT),
    _is_refused("a schema with a const of 10,000 values", schema({"const": [0] * 4_500}), CHAT),
    _is_refused("a pattern in a definition", schema({"$defs": {"a": {"type": "string", "pattern": "^" + "a?" * 200 + "$"}},
                                                   "$ref": "#/$defs/a"}), CHAT),
    # the same in every place where a schema may be
    _is_refused("a tool of maxLength 10 million", tool({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 10**7}}}), CHAT),
    _is_refused("a tool of 200 optional properties", tool(fields_of(200, required=False)), CHAT),
    _is_refused("json_schema of maxLength 10 million", text(json_schema={"type": "string", "maxLength": 10**7})),
    _is_refused("response_format.schema of maxLength 10 million", chat(response_format={
        "type": "json_object", "schema": {"type": "string", "maxLength": 10**7}}), CHAT),
    _is_refused("input_schema of maxLength 10 million", lambda: {"max_tokens": 4, "messages": said("Hi."), "tools": [
        {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 10**7}}}}]},
        "/v1/messages"),
    _is_refused("text.format.schema of maxLength 10 million", lambda: {"input": "Hi.", "text": {"format": {
        "type": "json_schema", "name": "a", "schema": {"type": "string", "maxLength": 10**7}}}}, "/v1/responses"),
    _is_refused("a response's tool of maxLength 10 million", lambda: {"input": "Hi.", "tools": [{"type": "function", "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 10**7}}}}]}, "/v1/responses"),
    _is_refused("the last of two grammars counts", lambda: (
        b'{"prompt": "a", "max_tokens": 4, "grammar": "root ::= \\"a\\"", "grammar": "root ::= ' + b'\\"a\\"? ' * 100 + b'"}')),
    _is_refused("a grammar whose name is escaped", lambda: (
        b'{"prompt": "a", "max_tokens": 4, "gr\\u0061mmar": "root ::= ' + b'\\"a\\"? ' * 100 + b'"}')),
    # numbers, lists and sizes
    _is_refused("50,000 probabilities for each token", text(n_probs=50_000)),
    _is_refused("40,000 top_logprobs", chat(logprobs=True, top_logprobs=40_000), CHAT),
    _is_refused("logprobs of 40,000", text(logprobs=40_000)),
    _is_refused("1,000 answers", chat(n=1000), CHAT),
    _is_refused("1,000 prompts", text(prompt=["Hi."] * 1000)),
    _is_refused("penalties that look two billion tokens back", text(repeat_last_n=2 * 10**9)),
    _is_refused("DRY that looks two billion tokens back", text(dry_multiplier=1, dry_penalty_last_n=2 * 10**9)),
    _is_refused("10^300 tokens", text(max_tokens=1e300)),
    _is_refused("a number that is none", lambda: b'{"prompt": "a", "max_tokens": 4, "temperature": 1e999}'),
    _is_refused("20,000 stop strings", text(stop=[f"s{n}" for n in range(20_000)])),
    _is_refused("a stop string of 1 MB", text(stop="a" * 1_000_000)),
    _is_refused("20,000 biases in a list", text(logit_bias=[[n, 1.0] for n in range(20_000)])),
    _is_refused("20,000 biases in an object", text(logit_bias={str(n): 1.0 for n in range(20_000)})),
    _is_refused("1,000 samplers", text(samplers=["top_k"] * 1000)),
    _is_refused("1,000 sequence breakers", text(dry_multiplier=1, dry_sequence_breakers=["a" * 40] * 1000)),
    _is_refused("10,000 messages", chat(messages=[{"role": "user", "content": "a"}] * 10_000), CHAT),
    _is_refused("1,000 tools", chat(tools=[{"type": "function", "function": {"name": "f"}}] * 1000), CHAT),
    _is_refused("a trigger of a grammar", text(grammar='root ::= "a"', grammar_lazy=True, grammar_triggers=[
        {"type": 2, "value": "(a*)*b"}])),
    _is_refused("a parser of llama-server's own", text(chat_parser="{}")),
    _is_refused("2 MB to tokenize", lambda: {"content": "a" * 2_000_000}, "/tokenize"),
    _is_refused("300,000 values", lambda: {"tokens": [1] * 300_000}, "/detokenize"),
    _is_refused("50 MB to tokenize", lambda: {"content": "a b " * 12_500_000}, "/tokenize", 413),
    # JSON
    _is_refused("JSON of 100,000 brackets", lambda: b"[" * 100_000, CHAT),
    _is_refused("JSON of 1,000 levels in a field", lambda: b'{"prompt": "a", "x": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
    _is_refused("no JSON", lambda: b"{'prompt': 1}"),
    _is_refused("JSON that ends early", lambda: b'{"prompt": "a"'),
    _is_refused("JSON and more", lambda: b'{"prompt": "a", "max_tokens": 1} {}'),
    _is_refused("NaN", lambda: b'{"prompt": "a", "max_tokens": 1, "temperature": NaN}'),
    _is_refused("bytes that are no text", lambda: b'{"prompt": "\xff\xfe", "max_tokens": 1}'),
    _is_refused("a list", lambda: b"[]", CHAT),
    _is_refused("nothing", lambda: b"", CHAT),
    # what is around the body
    Case("a body that is compressed", CHAT, lambda: b"\x1f\x8b\x08\x00", 415, headers={**_JSON, "Content-Encoding": "gzip"}),
    Case("a form with parts", CHAT, lambda: b"--b\r\n\r\n--b--", 415, headers={"Content-Type": "multipart/form-data; boundary=b"}),
    Case("text of a web page elsewhere", CHAT, chat(), 415, headers={"Content-Type": "text/plain"}),
    Case("a form of a web page elsewhere", CHAT, chat(), 415, headers={
        "Content-Type": "application/x-www-form-urlencoded", "Origin": "http://elsewhere.example"}),
)  # fmt: skip

# Routes that are nobody's, answered with 404, 405 for the method, or 400: what changes the server, or shows what others ask.
CLOSED: Final = tuple(
    Case(f"{method} {path}", path, (lambda: b"") if method == "GET" else dict, 404, method)
    for method, path in (
        ("POST", "/models"), ("POST", "/v1/models"), ("POST", "/models/unload"), ("POST", "/models/download"),
        ("DELETE", "/models"), ("DELETE", "/models/x"), ("GET", "/v1/stream?conv_id=x"), ("POST", "/v1/streams/lookup"),
        ("POST", "/props"), ("GET", "/slots"), ("POST", "/slots/0?action=save"), ("POST", "/slots/0?action=erase"),
        ("POST", "/lora-adapters"), ("GET", "/cors-proxy?url=http://127.0.0.1/"), ("POST", "/cors-proxy"), ("GET", "/tools"),
        ("POST", "/tools"), ("POST", "/v1/chat/completions/control"), ("POST", "/infill"), ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/chat/completions"), ("PATCH", "/v1/models"), ("TRACE", "/"), ("GET", "/v1/chat/completions"),
        ("GET", "/v1/no-such-thing"), ("POST", "/v1/no-such-thing"), ("GET", "/../models"), ("POST", "//models/unload"),
        ("POST", "/%6dodels/unload"), ("POST", "/v1/../models/unload"), ("POST", "/models/load/"),
        ("POST", "/MODELS/load"),
    )
)  # fmt: skip

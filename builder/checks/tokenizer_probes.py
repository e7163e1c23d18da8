"""The texts on which a GGUF's tokenizer and chat template are held against the Hugging Face ones.

Each is short and aims at one way in which tokenizers are known to part: how they split numbers, runs of spaces
and contractions, whether they normalize, what they do with bytes outside the vocabulary, and where text looks
like a special token. All were written for this project.

No import but the standard library: `hf_reference.py` loads this file in the converter's Python.
"""

# ruff: noqa: RUF001  (characters that look alike are the point)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# To add a probe: put it in the group it belongs to, or add a group; all must differ (a test counts them).
# Escapes stand where a reader could not see the character, or an editor might change it.
PROBES_BY_GROUP: dict[str, tuple[str, ...]] = {
    "plain": (
        "", "a", "Z", "Hello", "hello world", "Hello, world!", "The quick grey heron waits.",
        "It's what we'd've said, isn't it?", "I'M SURE YOU'LL SAY THEY'RE HERE", "don’t won’t can’t it’s",
        "camelCaseWord PascalCaseWord snake_case_word kebab-case-word", "ALLCAPS and lowercase and MiXeD",
        "e.g. i.e. etc. vs. Dr. No. 5", "A sentence. Another one! A third? Yes; and: more…",
    ),
    "spaces": (
        " ", "  ", "   ", "    ", "        ", "                ", " a", "a ", "  a", "a  ", " a b ", "a  b",
        "a   b    c     d", "   leading", "trailing   ", " both sides ", "word " * 12, "\u00a0", "a\u00a0b",
        "a\u2003b", "a\u200ab", "a\u3000b", "a\u2009b\u202fc", "\u00a0 \u00a0 mixed \u2003 spaces",
    ),
    "lines": (
        "\n", "\n\n", "\n\n\n", "\n\n\n\n\n\n", "\t", "\t\t", "\t\t\t\t", "\r", "\r\n", "\r\n\r\n", "\n\r", "\v",
        "\f", "a\nb", "a\n\nb", "a\n\n\nb", "a\r\nb", "a\r\n\r\nb", "a \nb", "a\n b", "a  \n  b", "a\tb", "a\t\tb",
        "\ta", "a\t", " \n", "\n ", " \t ", "\t \t", " \n \n ", "line one\nline two\n", "\n  indented\n    more\n",
        "\u2028", "a\u2028b", "a\u2029b", "a\u0085b", "end of line \n\n  next",
    ),
    "numbers": (
        "0", "7", "10", "42", "123", "1234", "12345", "1234567890", "00000", "007", "1,234,567.89", "1.234.567,89",
        "3.14159265358979", "-273.15", "+1", "1e-9", "6.02e23", "0x1F4A9", "0b101010", "1/2", "50%", "$19.99", "€5",
        "№7", "2024-02-29T23:59:59.999Z", "12:34:56", "1st 2nd 3rd 4th", "v1.2.3-rc.4+build.5", "192.168.0.255",
        "1 2 3 4 5", "١٢٣٤٥", "१२३४५", "１２３４５", "²³¹⁰", "½ ¼ ¾", "Ⅳ Ⅻ ⅷ", "①②③", "12abc34", "9" * 40,
    ),
    "punctuation": (
        "!", "...", "…", "?!?!", "--", "—", "–", "a—b", "'", '"', "''", '""', "“quoted”", "‘single’", "«guillemets»",
        "„unten“", "()", "[[]]", "{{}}", "<>", "<<>>", "/\\", "|", "||", "&&", "@user", "#tag", "~/path", "`code`",
        "```", "!@#$%^&*()_+-=[]{}|;':\",./<>?", "a.b,c;d:e", "(a)[b]{c}<d>", "¿Qué? ¡Sí!", "。、「」『』！？",
        "…—–‐‑‒―", "†‡•§¶", "=====", "-----", "*****", "#####", "_____", " .", " ,", " 's", "'s", "n't",
    ),
    "code": (
        "def add(a: int, b: int = 0) -> int:\n    return a + b\n",
        'for i in range(10):\n\tif i % 2:\n\t\tprint(f"{i:>3}")\n',
        '#include <stdio.h>\nint main(void) { printf("%d\\n", 1 << 4); return 0; }',
        "template<typename T> auto f(T&& x) -> decltype(x) { return std::move(x); }",
        'fn main() { let v: Vec<u8> = vec![0; 3]; println!("{:?}", &v[..]); }',
        "const f = async (x) => { await g(x ?? 1); return `${x}!`; };",
        "public static void main(String[] args) throws IOException {}",
        "SELECT name, COUNT(*) FROM users WHERE id >= 10 AND city <> 'Rome' GROUP BY name;",
        'if [ -z "$1" ]; then echo "usage: $0 <file>" >&2; exit 2; fi',
        'package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println("hi")\n}\n',
        "<div class=\"box\" data-id='3'>&nbsp;&lt;tag&gt;</div>", "<!-- comment --><br/>",
        "body { margin: 0 auto; color: #ff00aa; }", "(defun square (x) (* x x))",
        "main = putStrLn $ show (map (+1) [1..3])", "x += 1; y -= 2; z *= 3; w //= 4; a != b; c === d; e <= f;",
        "a->b::c.d[e](f)?.g!", "i++ + ++j", "\\d+\\.\\w*[^a-z]$", "        return None", "\t\treturn None",
        "}\n\n\n}\n", "/* a */ // b", '"""docstring"""', "0xDEADBEEF & ~0xFF",
    ),
    "markup": (
        "# Title\n\n- one\n- two\n  - three\n\n1. first\n2. second\n", "**bold** _italic_ ~~gone~~ `code`",
        "| a | b |\n|---|:-:|\n| 1 | 2 |\n", "> quote\n>> deeper\n", "```python\nx = 1\n```\n",
        "[text](https://example.org/a?b=c)", '{"key": [1, 2.5, true, null, "\\u00e9\\n"], "nested": {"a": {}}}',
        '{\n  "indent": 2,\n  "list": [\n    1\n  ]\n}', "key: value\nlist:\n  - a\n  - b: 1\n",
        '<?xml version="1.0"?><a b="c"><d/></a>', 'a,b,c\n1,"x, y",3\n',
    ),
    "urls": (
        "https://www.example.com/path/to/page.html?query=one+two&x=%20#part",
        "ftp://user:pass@host.example:2121/~dir/", "first.last+tag@mail.example.co.uk",
        "C:\\Windows\\System32\\drivers\\etc", "/usr/local/lib/python3/site-packages", "www.xn--bcher-kva.example",
        "urn:isbn:9780000000002", "data:text/plain;base64,SGVsbG8=", "550e8400-e29b-41d4-a716-446655440000",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    ),
    "math": (
        "a² + b² = c²", "∑_{i=1}^{n} i = n(n+1)/2", "∀x ∈ ℝ: x² ≥ 0", "$\\frac{a}{b} \\le \\sqrt{2}$",
        "∫₀^∞ e^{-x} dx = 1", "α ≠ β ⇒ ¬(α ≡ β)", "∂f/∂x ≈ Δf/Δx", "x ∉ ∅ ∪ {∞}", "𝒜 𝔅 ℂ 𝕯 𝟙 𝟘", "→ ← ↔ ⇌ ↦",
        "≤≥≠≈±×÷√∛", "10⁻⁹ m·s⁻¹",
    ),
    "latin": (
        "Zażółć gęślą jaźń", "Příliš žluťoučký kůň", "Ağaç ışık İstanbul ıssız", "Đường phố Việt Nam rất đông",
        "Größe, Straße, MASSE, ẞ", "Ça va être l'été où naître", "El niño añadió azúcar",
        "São João não chegou amanhã", "Ærø, Ångström, smörgås", "Þetta er íslenska", "Şi țara încă așteaptă",
        "Hyvää yötä, kesä jää", "Őrült űrhajós", "ĳ ŀ ŉ ǆ ﬁ ﬂ ﬀ", "Œuvre cœur æther", "Ħġaż mħawwad", "Ẹ kú àárọ̀ o",
        "ꜰꜱᴄ ʰʲ ɐʍ", "ｆｕｌｌ　ｗｉｄｔｈ",
    ),
    "combining": (
        "é", "e\u0301", "ñ", "n\u0303", "Å", "A\u030a", "\u212b", "ö\u0323", "o\u0323\u0308", "o\u0308\u0323",
        "q\u0307\u0323", "Z\u0351\u036b\u0343a\u0328\u0321l\u0315\u0322g\u0489o\u0334", "\u0301", " \u0301", "가",
        "\u1100\u1161", "각", "\u1100\u1161\u11a8", "が", "か\u3099", "\u0958", "\u0915\u093c", "ﷺ", "ﬃ", "Ω",
        "\u2126", "㎏", "㍿", "ａ", "ⅰ", "e\u0301e\u0301e\u0301", "\u00c5\u0041\u030a\u212b", "a\u034fb", "x\u20d7",
    ),
    "invisible": (
        "a\u200bb", "a\u200cb", "a\u200db", "a\u2060b", "\ufeff", "\ufeffa", "a\ufeffb", "a\u00adb", "\u200e\u200f",
        "a\u202eb\u202cc", "\u0001", "\u001b[31mred\u001b[0m", "\u007f", "a\u0008b", "\ufffd", "a\ufffdb", "\ufffc",
        "\ue000", "\U000f0000", "\u2066x\u2069", "\u061c", "\U000e0041",
    ),
    "emoji": (
        "😀", "😀😃😄", "I ♥ you ❤️", "👍🏽", "👍🏻👍🏼👍🏽👍🏾👍🏿", "👨‍👩‍👧‍👦", "👩🏿‍🚀", "🏳️‍🌈", "🏴‍☠️",
        "🇩🇪🇯🇵🇧🇷", "🇩🇪 🇯", "1️⃣2️⃣#️⃣*️⃣", "☺︎ ☺️", "🧑🏻‍❤️‍💋‍🧑🏿", "🫠🫡🪿🫨", "text😀text", " 😀 ", "😀\n😀",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "♠♣♥♦ ★☆ ☀☁☂", "🀄🂡🎴", "(╯°□°)╯︵ ┻━┻",
        "¯\\_(ツ)_/¯", ":-) ;-P xD <3", "█▓▒░ ┌─┐│ │└─┘",
    ),
    "greek-cyrillic": (
        "Καλημέρα κόσμε", "ΑΘΗΝΑ Αθήνα αθήνας ς", "Ἐν ἀρχῇ ἦν ὁ λόγος", "Привет, мир!", "Съешь ещё мягких булок",
        "Їжак ґава єнот", "Љубљана ђак ћуп", "Ўзбекча қиз ғоз", "Ѣ ѳ ѵ ꙁ", "Монгол хэл өвөл үүл",
    ),
    "right-to-left": (
        "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "ٱلْعَرَبِيَّة ـــ", "فارسی: می‌خواهم گچ پژ", "اردو میں ٹھیک ہے",
        "שלום עולם", "בְּרֵאשִׁית", "abc אבג 123 דהו", "ܫܠܡܐ", "ދިވެހި", "ئۇيغۇرچە", "יידיש איז שפּראַך",
    ),
    "indic": (
        "नमस्ते दुनिया", "क्षत्रिय ज्ञान श्री", "र्‍य क्‌ष", "বাংলা ভাষা ৎ ং", "தமிழ் மொழி ஸ்ரீ", "తెలుగు లిపి",
        "ಕನ್ನಡ ನುಡಿ", "മലയാളം ൻ ർ ൽ", "ગુજરાતી લિપિ", "ਪੰਜਾਬੀ ਗੁਰਮੁਖੀ", "ଓଡ଼ିଆ ଭାଷା", "සිංහල ශ්‍රී", "ᱥᱟᱱᱛᱟᱲᱤ",
        "ॐ । ॥",
    ),
    "southeast-asian": (
        "สวัสดีชาวโลก", "ภาษาไทยไม่มีเว้นวรรค", "น้ำ ที่ ปั๊ม", "ສະບາຍດີຊາວໂລກ", "សួស្តីពិភពលោក", "ភាសាខ្មែរ",
        "မြန်မာဘာသာ", "ကျွန်ုပ်", "བོད་ཡིག།", "ᮘᮞ ᮞᮥᮔ᮪ᮓ", "ꦧꦱꦗꦮ",
    ),
    "east-asian": (
        "你好，世界", "繁體中文與简体中文", "汉字 汉字", "𠮷野家 𡨸喃", "㐀䶿", "一二三四五六七八九十",
        "こんにちは世界", "カタカナとひらがな", "ﾊﾝｶｸ ｶﾅ", "東京タワーは333メートル。", "ゞヽ々〆",
        "안녕하세요 세계", "대한민국 서울 2024년", "ㄱㄴㄷ ㅏㅑㅓ", "가나다라마바사", "ㄅㄆㄇㄈ", "ꀀꀁꀂ",
        "中文English混在テキスト혼합",
    ),
    "other-scripts": (
        "გამარჯობა მსოფლიო", "ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ", "Բարեւ աշխարհ", "ሰላም ዓለም", "አማርኛ ፊደል ፩፪፫", "ᏣᎳᎩ ꮳꮃꭹ", "ᐃᓄᒃᑎᑐᑦ", "ᠮᠣᠩᠭᠣᠯ",
        "ߒߞߏ", "ⴰⵎⴰⵣⵉⵖ", "ⲙⲉⲧⲣⲉⲙⲛ", "𐌰𐌱𐌲𐌳", "𓀀𓁹𓂀", "𒀀𒁀", "ᚠᚢᚦᚨᚱᚲ", "᚛ᚑᚌᚐᚋ᚜", "𐐀𐐨", "⠓⠑⠇⠇⠕", "𝄞𝅘𝅥𝅮", "ꙮ", "𞤀𞤣𞤤𞤢𞤥",
    ),
    "mixed": (
        "Hello мир 世界 שלום नमस्ते 😀 123", "naïve café № 5 – “ok”…", "aаɑ oоο", "ÀéÎõÜ\tñ\nß",
        "abc日本語def한국어ghi", "X²Y₃™®©", "#日本語タグ @ünïcödé", "price: 5€/10£/¥100/₹50/₿1", "a\u0002b", "ÿþýü",
        "ÃƒÂ© Ã¼", "日1月2火3", "π≈3.14, e≈2.72", "🙂text مرحبا\n\n  code()", "ﾟｏﾟ ｡ ｢x｣",
    ),
    "long": (
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze", "antidisestablishmentarianism",
        "pneumonoultramicroscopicsilicovolcanoconiosis", "a" * 64, "ab" * 40, "A" * 33, "haha" * 15, "x" * 200,
        "中" * 40, "é" * 50, "😀" * 20, "0123456789" * 8, "." * 70, "=" * 100, "\n" * 20, " " * 65, "\t" * 17,
        "supercalifragilistic" * 4, "qwrtpsdfghjklzxcvbnm" * 3, "word-" * 20, "a b " * 25,
    ),
    "look-alikes": (
        "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "[CLS] text [SEP]", "[INST] hi [/INST]",
        "<<SYS>> x <</SYS>>", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<|begin_of_text|><|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>", "<start_of_turn>model\n", "<|user|>\nhi<|assistant|>",
        "<think>\nhm\n</think>\n", "<tool_call>{}</tool_call>", "<0x0A>", "<0xFF>", "<|im_start", "|im_end|>",
        "< s >", "<S>", "<|IM_START|>", "▁", "▁a▁b", "Ġ", "Ġa Ċ ĉ", "##ing", "<|", "|>", "<|>", "</", "<unused0>",
        "<extra_id_0>", "<fim_prefix>a<fim_suffix>b<fim_middle>", "��", "\\n\\t\\u0041", "&amp;&#65;",
    ),
}  # fmt: skip

PROBES: tuple[str, ...] = tuple(probe for group in PROBES_BY_GROUP.values() for probe in group)

# BOS and EOS do not depend on what stands between them, so a few texts tell.
ENDS_PROBES: tuple[str, ...] = ("", "a", "Hello, world!", " a", "a\n", "世界", "def f():\n    pass\n")

# What stands around an added token; its flags (lstrip, rstrip, single_word, …) say what becomes of the neighbours.
ADDED_TOKEN_CONTEXTS: tuple[str, ...] = (
    "{}", "a{}b", "a {} b", "{}{}", "{}\n", " {} ", "({})", "9{}9", "The{}\n\n{} end",
)  # fmt: skip
# Of a token without flags that is one of hundreds: llama.cpp takes a millisecond for each text between two tokens.
MANY_TOKENS_CONTEXTS: tuple[str, ...] = ("a{}b {}\n",)
_MANY = 300  # added tokens

# Probes that spell a token of some model: what a tokenizer does with them is a matter of its own words only.
LOOK_ALIKES: frozenset[str] = frozenset(PROBES_BY_GROUP["look-alikes"])

_BATCH = 128  # probes in one text


def added_token_batches(tokens: Sequence[dict[str, Any]]) -> list[tuple[list[str], list[str]]]:
    """Probes for every added token of a tokenizer, alone and with each neighbour.

    Some vocabularies reserve thousands, so the probes come in batches that are asked as one text, a probe a line, and
    of thousands only those with flags have every neighbour.

    Args:
        tokens: `content` and the flags, see witness.py.

    Returns:
        The tokens of each batch, and a probe of each.
    """
    is_many = len(tokens) > _MANY
    contexts: dict[tuple[str, ...], list[str]] = {ADDED_TOKEN_CONTEXTS: [], MANY_TOKENS_CONTEXTS: []}
    for token in tokens:
        has_flags = any(token[flag] for flag in ("lstrip", "rstrip", "single_word", "normalized"))
        chosen = MANY_TOKENS_CONTEXTS if is_many and not has_flags else ADDED_TOKEN_CONTEXTS
        contexts[chosen].append(token["content"])
    return [
        (part, [context.replace("{}", name) for name in part])
        for around, names in contexts.items() for context in around
        for part in (names[at : at + _BATCH] for at in range(0, len(names), _BATCH))
    ]  # fmt: skip


Message = dict[str, str]


def _probe_chat(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


# To add a conversation: a name and its messages; it must end with the user, since the rendered text ends with
# the opening of the assistant's answer.
CONVERSATIONS: dict[str, list[Message]] = {
    "user": _probe_chat(("user", "What is a heron?")),
    "system-user": _probe_chat(("system", "You answer in one word."), ("user", "Is water wet?")),
    "multi-turn": _probe_chat(("user", "Hi."), ("assistant", "Hello! How can I help?"), ("user", "Count to three.")),
    "system-multi-turn": _probe_chat(
        ("system", "You are a careful librarian."), ("user", "Which shelf?"), ("assistant", "The third."),
        ("user", "And the book?"), ("assistant", "The blue one."), ("user", "Thank you."),
    ),
    "unicode": _probe_chat(("system", "Sei höflich. 简短回答。"), ("user", "Καλημέρα 😀 — ça va? 你好 שלום")),
    "empty-system": _probe_chat(("system", ""), ("user", "Anyone there?")),
    "empty-user": _probe_chat(("user", "")),
    "whitespace": _probe_chat(("user", "  two spaces before, a tab\tinside,\n\na blank line and spaces after  ")),
    "code": _probe_chat(("user", "Explain:\n```python\nd = {\"a\": '<b>', \"c\": \"{{ x }} {% y %}\"}\n```")),
    "quotes": _probe_chat(
        ("user", "She said \"it's <fine> & done\" \\ ok"), ("assistant", "‘Yes’ — «si»"), ("user", "{}")
    ),
}  # fmt: skip

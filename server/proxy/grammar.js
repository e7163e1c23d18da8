// A grammar in GBNF, read just far enough to tell what it would cost llama.cpp: a grammar may be small and still have
// more ways to go on than any machine can follow.
import {Refused, atMost} from 'limits.js';

const TOKEN = /\s+|#[^\n]*|([A-Za-z0-9_-]+)(\s*::=)?|("(?:[^"\\]|\\[^])*")|(\[(?:[^\]\\]|\\[^])*\])|(!?<[^>]*>)|([().|*+?])|(\{[\d,\s]*\})/y;

function checkGrammar(text) {
    if (typeof text !== 'string') throw new Refused('The grammar is no text.', 'Send it as a string in GBNF.');
    atMost('grammar_chars', text.length);
    const rules = parse(text);
    atMost('grammar_rules', rules.size);
    checkRules(rules, 'grammar');
}

// `kind`: whose limits count, a grammar's or a pattern's.
function checkRules(rules, kind) {
    const costs = new Costs(rules, kind);
    for (const name of rules.keys()) costs.ofRule(name);
    atMost(`${kind}_optional`, costs.optional);
    atMost(`${kind}_written`, costs.written);
    checkRecursion(rules, costs);
}

// ---- the rules: an option is a list of parts; a part is {kind: char, ref or group, least, most} ---------------

function parse(text) {
    const rules = new Map();
    let open = [], options = null;
    const last = () => options[options.length - 1];
    for (const token of tokens(text)) {
        if (token.rule !== undefined) {
            if (open.length) throw new Refused('A bracket of the grammar is not closed.', 'Close it.');
            options = [[]];
            rules.set(token.rule, options);
            continue;
        }
        if (!options) throw new Refused('The grammar does not begin with a rule.', 'Begin with: root ::= …');
        if (token.is === '(') {
            open.push(options);
            atMost('grammar_depth', open.length);
            options = [[]];
        } else if (token.is === ')') {
            if (!open.length) throw new Refused('A bracket of the grammar was never opened.', 'Open it.');
            const group = {kind: 'group', options, least: 1, most: 1};
            options = open.pop();
            last().push(group);
        } else if (token.is === '|') {
            options.push([]);
        } else if (token.times) {
            repeat(last(), token.times);
        } else {
            last().push({...token, least: 1, most: 1});
        }
    }
    return rules;
}

function* tokens(text) {
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < text.length) {
        const start = TOKEN.lastIndex;
        const found = TOKEN.exec(text);
        if (!found) {
            throw new Refused(`The grammar is no GBNF at ${JSON.stringify(text.slice(start, start + 20))}.`, 'Mend it there.');
        }
        const [, name, defines, literal, chars, wanted, mark, times] = found;
        if (defines) yield {rule: name};
        else if (name) yield {kind: 'ref', name};
        else if (literal) yield {kind: 'char', first: literal.length > 2 ? literal : '', isEmpty: literal.length === 2};
        else if (chars || wanted) yield {kind: 'char', first: chars || wanted};
        else if (mark === '.') yield {kind: 'char', first: '[^]'};
        else if (mark && '*+?'.includes(mark)) yield {times: {'*': [0, 0], '+': [1, 0], '?': [0, 1]}[mark]};
        else if (mark) yield {is: mark};
        else if (times) yield {times: bounds(times)};
    }
}

// [least, most]; most is 0 where there is no end.
function bounds(text) {
    const [least, most] = text.slice(1, -1).split(',').map((part) => part.trim());
    return [Number(least), most === undefined ? Number(least) : Number(most)];
}

function repeat(sequence, [least, most]) {
    if (!sequence.length) throw new Refused('A repetition of the grammar repeats nothing.', 'Put something before it.');
    const part = sequence.pop();
    // what is repeated twice over is a group of its own
    const inner = part.least === 1 && part.most === 1 ? part : {kind: 'group', options: [[part]]};
    sequence.push({...inner, least, most, isRepeated: true});
}

// ---- what they cost ------------------------------------------------------------------------------------------

// Of each rule: whether it may match nothing; `choices`, the literals that may come first; `run`, its optional parts in a
// row; `repeats`, the product of its repetitions.
class Costs {
    constructor(rules, kind) {
        this.rules = rules;
        this.kind = kind;
        this.known = new Map();
        this.optional = 0;
        this.written = 0; // repetitions written out
    }

    ofRule(name) {
        if (this.known.has(name)) {
            const found = this.known.get(name);
            // a rule met again before anything was matched
            if (!found) return {isEmpty: false, choices: 0, run: 0, repeats: 1, isOpen: true};
            return found;
        }
        if (!this.rules.has(name)) throw new Refused(`The grammar has no rule ${name.slice(0, 60)}.`, 'Write it.');
        this.known.set(name, null);
        const found = this.ofOptions(this.rules.get(name));
        this.known.set(name, found);
        return found;
    }

    ofOptions(options) {
        const sum = {isEmpty: false, choices: 0, run: 0, loops: 0, repeats: 1};
        for (const sequence of options) {
            const cost = this.ofSequence(sequence);
            sum.choices += cost.choices;
            sum.isEmpty = sum.isEmpty || cost.isEmpty;
            sum.run = Math.max(sum.run, cost.run);
            sum.loops = Math.max(sum.loops, cost.loops);
            sum.repeats = Math.max(sum.repeats, cost.repeats);
        }
        atMost(`${this.kind}_choices`, sum.choices);
        return sum;
    }

    // From the last part to the first: what may come at each place.
    ofSequence(sequence) {
        let choices = 0, run = 0, loops = 0, isEmpty = true, longest = 0, most = 0, repeats = 1;
        for (let at = sequence.length - 1; at >= 0; at--) {
            const part = sequence[at], cost = this.ofPart(part);
            choices = cost.choices + (cost.isEmpty ? choices : 0);
            run = cost.isEmpty ? Math.max(1, cost.run) + run : 0;
            loops = cost.isEmpty ? loops + (part.most === 1 ? cost.loops || 0 : 1) : 0;
            most = Math.max(most, loops);
            isEmpty = isEmpty && cost.isEmpty;
            longest = Math.max(longest, run);
            repeats = Math.max(repeats, cost.repeats);
            atMost(`${this.kind}_choices`, choices);
            atMost(`${this.kind}_optional_run`, run);
            atMost(`${this.kind}_loops`, loops);
            atMost(`${this.kind}_repeats`, repeats);
        }
        return {choices, run: isEmpty ? run : 0, loops: isEmpty ? loops : 0, isEmpty, repeats};
    }

    ofPart(part) {
        if (part.cost) return part.cost;
        const inner = part.kind === 'ref' ? this.ofRule(part.name)
            : part.kind === 'group' ? this.ofOptions(part.options)
            : {isEmpty: Boolean(part.isEmpty), choices: 1 + Math.floor((part.first || '').length / 32), run: 0, repeats: 1};
        if (part.isRepeated) this.written += Math.max(part.least, part.most);
        if (part.least === 0) this.optional++;
        const times = Math.max(part.least, part.most, 1);
        const isEmpty = inner.isEmpty || part.least === 0;
        const copies = inner.isEmpty ? times : 1; // of what may match nothing, each may be left out for itself
        const run = isEmpty ? Math.max(1, inner.run) * copies : 0;
        const cost = {...inner, isEmpty, run, choices: inner.choices * copies, repeats: inner.repeats * times};
        if (!inner.isOpen) part.cost = cost;
        return cost;
    }
}

// ---- recursion -----------------------------------------------------------------------------------------------

// A rule that calls itself first never ends; one with two ways into itself that begin alike doubles what llama.cpp has to
// follow with every letter.
function checkRecursion(rules, costs) {
    const left = new Map(); // rule → whether its beginnings are all known
    for (const name of rules.keys()) checkLeft(name, rules, costs, left);
    const circles = circlesOf(rules);
    const firsts = new Firsts(rules, costs);
    for (const [name, options] of rules) {
        eachChoice(options, (choice) => choice.forEach((sequence) => sequence.forEach((part) => {
            if (part.kind !== 'char' && part.most !== 1) checkLoop(part, name, rules, costs, firsts);
        })));
        const isInside = (part) => part.kind === 'ref' ? circles.get(part.name) === circles.get(name)
            : part.kind === 'group' && part.options.some((sequence) => sequence.some(isInside));
        if (!isRecursive(name, options, circles)) continue;
        eachChoice(options, (choice) => {
            // what comes last needs nothing to be kept for afterwards
            const deeper = choice.filter((sequence) => sequence.some((part, at) =>
                isInside(part) && (at < sequence.length - 1 || part.isRepeated)));
            if (deeper.length > 1) firsts.mustDiffer(name, deeper);
        });
    }
}

// What is repeated must not be nothing, nor begin alike in two ways: llama.cpp follows every way through every token.
function checkLoop(part, name, rules, costs, firsts) {
    const options = part.kind === 'ref' ? rules.get(part.name) : part.options;
    if (costs.ofOptions(options).isEmpty) {
        throw new Refused(`The rule ${name.slice(0, 60)} repeats what may be nothing.`, 'Let the inner part be something.');
    }
    for (const inner of options) {
        const loop = inner.length === 1 && inner[0].most !== 1 && inner[0].isRepeated;
        if (loop) throw new Refused(`The rule ${name.slice(0, 60)} repeats a repetition.`, 'Repeat it once.');
    }
    if (options.length < 2) return;
    const words = options.map((sequence) => sequence.length === 1 && sequence[0].kind === 'char' && sequence[0].most === 1
        && sequence[0].first[0] === '"' ? sequence[0].first.slice(1, -1) : null);
    if (!words.includes(null)) checkWords(words, name);
    else firsts.mustDiffer(name, options);
}

// Words may begin alike, as long as what is left of the longer one begins none.
function checkWords(words, name) {
    const starts = new Set(words.map((word) => word[0]));
    const all = new Set();
    for (const word of words) {
        if (all.has(word)) throw new Refused(`The rule ${name.slice(0, 60)} repeats a choice of one word twice.`, 'Name it once.');
        all.add(word);
    }
    for (const word of words) {
        for (let end = 1; end < word.length; end++) {
            if (all.has(word.slice(0, end)) && starts.has(word[end])) {
                throw new Refused(`The rule ${name.slice(0, 60)} repeats words of which one may be others.`, 'Put something between.');
            }
        }
    }
}

function isRecursive(name, options, circles) {
    let found = false;
    eachChoice(options, (choice) => choice.forEach((sequence) => sequence.forEach((part) => {
        found = found || (part.kind === 'ref' && circles.get(part.name) === circles.get(name));
    })));
    return found;
}

function eachChoice(options, visit) {
    visit(options);
    for (const sequence of options) {
        for (const part of sequence) if (part.kind === 'group') eachChoice(part.options, visit);
    }
}

// Rules that call each other in a circle have the same number, as Tarjan finds them.
function circlesOf(rules) {
    const index = new Map(), low = new Map(), circle = new Map(), stack = [];
    const visit = (name) => {
        index.set(name, index.size);
        low.set(name, index.get(name));
        stack.push(name);
        eachChoice(rules.get(name), (choice) => choice.forEach((sequence) => sequence.forEach((part) => {
            if (part.kind !== 'ref' || circle.has(part.name)) return;
            if (!index.has(part.name)) visit(part.name);
            low.set(name, Math.min(low.get(name), low.get(part.name)));
        })));
        if (low.get(name) !== index.get(name)) return;
        for (let member; member !== name;) circle.set(member = stack.pop(), index.get(name));
    };
    for (const name of rules.keys()) if (!index.has(name)) visit(name);
    return circle;
}

function checkLeft(name, rules, costs, left) {
    if (left.get(name)) return;
    if (left.has(name)) {
        throw new Refused(`The rule ${name.slice(0, 60)} of the grammar begins with itself.`, 'Begin it with something else.');
    }
    left.set(name, false);
    const follow = (options) => {
        for (const sequence of options) {
            for (const part of sequence) {
                if (part.kind === 'group') follow(part.options);
                if (part.kind === 'ref') checkLeft(part.name, rules, costs, left);
                if (!costs.ofPart(part).isEmpty) break;
            }
        }
    };
    follow(rules.get(name));
    left.set(name, true);
}

// The characters that sequences may begin with.
class Firsts {
    constructor(rules, costs) {
        this.rules = rules;
        this.costs = costs;
    }

    mustDiffer(name, sequences) {
        const seen = [];
        for (const sequence of sequences) {
            const ranges = this.of([sequence], new Set());
            if (ranges.some((one) => seen.some((other) => one[0] <= other[1] && other[0] <= one[1]))) {
                throw new Refused(`The rule ${name.slice(0, 60)} calls itself, or repeats, in two ways that begin alike.`,
                    'Let each begin with another character.');
            }
            seen.push(...ranges);
        }
    }

    of(options, seen) {
        const found = [];
        for (const sequence of options) {
            for (const part of sequence) {
                if (part.kind === 'char') found.push(...ranges(part.first));
                if (part.kind === 'group') found.push(...this.of(part.options, seen));
                if (part.kind === 'ref' && !seen.has(part.name)) {
                    seen.add(part.name);
                    found.push(...this.of(this.rules.get(part.name), seen));
                }
                if (!this.costs.ofPart(part).isEmpty) break;
            }
        }
        return found;
    }
}

const ESCAPES = {n: 10, r: 13, t: 9};
const ANY = [0, 0x10ffff];

// Of "literal": its first character; of [a-z]: its ranges; of anything else: all there are.
function ranges(text) {
    if (text === '') return [];
    if (text[0] !== '"' && text[0] !== '[') return [ANY];
    const points = characters(text.slice(1, -1));
    if (text[0] === '"') return [[points[0].value, points[0].value]];
    const isNot = points.length > 0 && points[0].value === 0x5e && !points[0].isEscaped;
    const found = [];
    for (let at = isNot ? 1 : 0; at < points.length; at++) {
        const isRange = points[at + 1]?.value === 0x2d && !points[at + 1].isEscaped && at + 2 < points.length;
        found.push([points[at].value, points[isRange ? at + 2 : at].value]);
        if (isRange) at += 2;
    }
    return isNot ? complement(found) : found;
}

function complement(found) {
    const rest = [];
    let from = 0;
    for (const [first, last] of found.sort((one, other) => one[0] - other[0])) {
        if (first > from) rest.push([from, first - 1]);
        from = Math.max(from, last + 1);
    }
    return [...rest, [from, ANY[1]]];
}

function characters(text) {
    const found = [], pattern = /\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([^]))|([^])/gu;
    for (const [, two, four, eight, escaped, plain] of text.matchAll(pattern)) {
        const hex = two || four || eight;
        const value = hex ? parseInt(hex, 16) : escaped ? ESCAPES[escaped] ?? escaped.codePointAt(0) : plain.codePointAt(0);
        found.push({value, isEscaped: !plain});
    }
    return found;
}

export {checkGrammar, checkRules};

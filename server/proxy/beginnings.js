// Refuses left recursion, and recursion that the first character does not decide; see server/limits/grammar_beginnings.py.
import {Refused} from 'limits.js';

// A rule that begins with itself never ends; one that calls itself in two ways that begin alike doubles the ways that
// llama.cpp has to follow with every character.
function checkBeginnings(rules, costs) {
    const left = new Map(); // rule → whether it was checked completely
    for (const name of rules.keys()) checkLeft(name, rules, costs, left);
    const circles = circlesOf(rules);
    const firsts = new Firsts(rules, costs);
    for (const [name, options] of rules) {
        const isInside = (part) => part.kind === 'ref' ? circles.get(part.name) === circles.get(name)
            : part.kind === 'group' && part.options.some((sequence) => sequence.some(isInside));
        if (!isRecursive(name, options, circles)) continue;
        eachChoice(options, (choice) => {
            // a tail call needs no entry on llama.cpp's stack
            const deeper = choice.filter((sequence) => sequence.some((part, at) =>
                isInside(part) && (at < sequence.length - 1 || part.isRepeated)));
            if (deeper.length > 1) firsts.mustDiffer(name, deeper);
        });
    }
    return firsts;
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

// Mutually recursive rules get the same number: strongly connected components (Tarjan).
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

// The first characters of sequences.
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

// "literal": its first character; [a-z]: its ranges; anything else: every character.
function ranges(text) {
    const found = rangesOf(text).filter(([first, last]) => first <= last && first <= ANY[1]);
    if (text[0] === '[' && !found.length) throw new Refused(`The class ${text.slice(0, 40)} has no character.`, 'Add one.');
    return found;
}

function rangesOf(text) {
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

export {checkBeginnings, characters, eachChoice, ranges};

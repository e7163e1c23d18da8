// Refuses ambiguous repetitions and choices of a grammar or a pattern: llama.cpp follows every way through every token.
// server/limits/grammar_loops.py has the same rules.
import {Refused} from 'limits.js';
import {characters, eachChoice} from 'beginnings.js';

const LONG = 4; // characters; ways this long may begin alike, since one token passes through few of them

function checkLoops(rules, costs, firsts) {
    const shortest = new Shortest(rules);
    for (const [name, options] of rules) {
        eachChoice(options, (choice) => {
            checkTwice(choice.map(word).filter((found) => found), name);
            for (const sequence of choice) {
                for (const part of sequence) if (part.kind !== 'char' && part.most !== 1) checkLoop(part, name, costs, firsts, shortest);
            }
        });
    }
}

function checkTwice(words, name) {
    if (new Set(words.map(String)).size < words.length) {
        throw new Refused(`The rule ${name.slice(0, 60)} lists one word twice in a choice.`, 'List it once.');
    }
}

function checkLoop(part, name, costs, firsts, shortest) {
    const rules = costs.rules;
    const options = part.kind === 'ref' ? rules.get(part.name) : part.options;
    if (costs.ofOptions(options).isEmpty) {
        throw new Refused(`The rule ${name.slice(0, 60)} repeats something that may be empty.`, 'Let the repeated part match at least one character.');
    }
    const found = [...ways([[{...part, least: 1, most: 1}]], rules, [])];
    if (found.some((way) => way.length === 1 && way[0].most !== 1 && (way[0].least !== way[0].most || way[0].most === 0))) {
        throw new Refused(`The rule ${name.slice(0, 60)} repeats a repetition.`, 'Repeat it once.');
    }
    const words = found.map(word);
    if (words.includes(null)) firsts.mustDiffer(name, found.filter((way) => shortest.ofSequence(way) < LONG));
    else checkWords(words, name);
}

// Words may begin alike, unless one is a prefix of another whose rest begins like a word.
function checkWords(words, name) {
    checkTwice(words, name);
    const starts = new Set(words.map((found) => found[0])), known = new Set(words.map(String));
    for (const found of words) {
        for (let end = 1; end < found.length; end++) {
            if (starts.has(found[end]) && known.has(String(found.slice(0, end)))) {
                throw new Refused(`The rule ${name.slice(0, 60)} repeats words of which one may be a sequence of others.`, 'Put a separator between them.');
            }
        }
    }
}

// The sequences of a choice; one that is only a group or a reference is replaced by its sequences.
function* ways(options, rules, seen) {
    for (const sequence of options) {
        const only = sequence.length === 1 && sequence[0].least === 1 && sequence[0].most === 1 ? sequence[0] : {};
        if (only.kind === 'group') yield* ways(only.options, rules, seen);
        else if (only.kind === 'ref' && !seen.includes(only.name)) yield* ways(rules.get(only.name), rules, [...seen, only.name]);
        else yield sequence;
    }
}

// The code points of a sequence of plain texts; null if it has other parts or is empty.
function word(sequence) {
    const isPlain = (part) => part.kind === 'char' && part.least === 1 && part.most === 1 && (part.isEmpty || part.first[0] === '"');
    if (!sequence.every(isPlain)) return null;
    const points = sequence.flatMap((part) => characters(part.first.slice(1, -1)).map(({value}) => value));
    return points.length ? points : null;
}

// The minimum number of characters that rules and sequences match.
class Shortest {
    constructor(rules) {
        this.rules = rules;
        this.known = new Map();
    }

    ofSequence(sequence) {
        return sequence.reduce((sum, part) => sum + (part.least && part.least * this.ofOne(part)), 0);
    }

    ofOptions(options) {
        return Math.min(...options.map((sequence) => this.ofSequence(sequence)));
    }

    ofOne(part) {
        if (part.kind === 'group') return this.ofOptions(part.options);
        if (part.kind === 'char') return part.isEmpty ? 0 : part.first[0] === '"' ? characters(part.first.slice(1, -1)).length : 1;
        if (!this.known.has(part.name)) {
            this.known.set(part.name, 0); // a recursive reference counts 0
            this.known.set(part.name, this.ofOptions(this.rules.get(part.name)));
        }
        return this.known.get(part.name);
    }
}

export {checkLoops};
